"""Run the commands as a user does, in processes forked from one that has imported the libraries.

On a machine with a GPU they start Python anew, which takes longer.
"""

import os
import runpy
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# Importing these takes longer than most runs do. `make test-readme` and
# tests/test_one_library.py start Python anew, and so find what a command fails to import.
PRELOADED = [
    'imgaug',
    'matplotlib.pyplot',
    'mmdet.datasets',
    'mmdet.engine',
    'mmevit.cli.check_dataset',
    'mmevit.cli.convert_dataset',
    'mmevit.cli.export',
    'mmevit.cli.finetune',
    'mmevit.cli.infer',
    'mmevit.cli.test',
    'mmevit.cli.train',
    'mmpretrain.datasets',
    'mmpretrain.engine',
    'mmpretrain.visualization',
    'mmseg.datasets',
    'mmseg.engine',
    'onnxruntime',
    'onnxscript',
    'scipy.stats',
    'sympy',
    'timm',
    'torch._dynamo',
    'torch.distributed.optim',
    'yapf.yapflib.yapf_api',
]

forkserver = get_context('forkserver')
forkserver.set_forkserver_preload(PRELOADED)


def run_tool(*command, cwd=ROOT, env=None, timeout=900, processes=1):
    """Run a command in a process of its own, a Python file in one that has the libraries.

    Several processes get the variables that torchrun sets.
    """
    command = [str(part) for part in command]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ['PATH']))
    env = os.environ | dict(PATH=path, PYTHONPATH=str(ROOT)) | (env or {})
    with tempfile.NamedTemporaryFile('w+') as output:
        if command[0].endswith('.py'):
            envs = [env | rank for rank in ranks(processes)]
            exit_code = run_in_forks(command, output.name, cwd, envs, timeout)
        else:
            options = dict(cwd=cwd, env=env, timeout=timeout)
            streams = dict(stdout=output, stderr=subprocess.STDOUT)
            exit_code = subprocess.run(command, **options, **streams).returncode
        output.seek(0)
        return subprocess.CompletedProcess(command, exit_code, output.read())


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def ranks(count):
    """The variables of each process of a distributed run."""
    if count == 1:
        return [{}]
    shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE=str(count))
    return [dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def run_in_forks(command, output, cwd, envs, timeout):
    """Run a script in a process for each environment; return the largest of their exit codes."""
    processes = [
        choose_context().Process(target=run_script, args=(command, output, cwd, env))
        for env in envs
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    if any(process.exitcode is None for process in processes):
        for process in processes:
            process.kill()
        raise subprocess.TimeoutExpired(command, timeout)
    # Negative for a process that a signal has killed.
    return max((process.exitcode for process in processes), key=abs)


def choose_context():
    # mmengine looks for a GPU when it is imported. If it finds one, its forks cannot use CUDA.
    return get_context('spawn') if torch.cuda.is_available() else forkserver


def call_in_process(function, *arguments):
    """Call a function in a process of its own, which returns its memory at the end."""
    with ProcessPoolExecutor(1, mp_context=choose_context()) as pool:
        return pool.submit(function, *arguments).result()


def run_script(command, output, cwd, env):
    """What `python SCRIPT ...` does, once this process is as the command is to find it."""
    with open(output, 'a') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    folders = env['PYTHONPATH'].split(os.pathsep)
    sys.path[:0] = [str(Path(command[0]).resolve().parent), *folders]
    # Python gives a script its absolute path.
    runpy.run_path(os.path.abspath(command[0]), run_name='__main__')
