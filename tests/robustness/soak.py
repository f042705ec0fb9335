"""Train for half an hour, and check for leaks of memory, open files and shared memory.

Each epoch ends with an evaluation and a checkpoint. The exit status is 1 if the memory of all
processes has grown by more than 5 % after the warm-up, or the number of open files or of files in
shared memory has grown.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from matplotlib.figure import Figure
from rich.progress import track

from mmevit.utils.configs import read_config
from mmevit.utils.files import atomic_write

TRAIN = Path(__file__).parents[2] / 'tools/train.py'
SHARED_MEMORY = Path('/dev/shm')


def main() -> None:
    """Train, measure every two seconds, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('work_dir', type=Path, help='folder for the run')
    parser.add_argument('--minutes', type=float, default=30, help='duration of training')
    parser.add_argument(
        '--warm-up', type=float, default=5, help='minutes before the comparison starts'
    )
    parser.add_argument('--plot', help='output figure')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    args = parser.parse_args()
    log = args.work_dir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, TRAIN, args.config, '--work-dir', args.work_dir]
    loop = read_config(args.config, None, needs=['train_cfg']).train_cfg
    length = 'max_iters' if 'max_iters' in loop else 'max_epochs'
    options = ['--cfg-options', f'train_cfg.{length}=100000000', *args.cfg_options]
    with log.open('w') as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file)
    samples, pids, start = [], set(), time.monotonic()
    try:
        for index in track(range(int(args.minutes * 30)), 'Training'):
            time.sleep(max(0, start + 2 * index - time.monotonic()))
            samples.append(measure(process, pids))
    finally:
        process.terminate()
        process.wait()
    if args.plot:
        plot(samples, args)
    sys.exit(has_leaks(samples, args))


def measure(process: subprocess.Popen, pids: set[int]) -> dict[str, float]:
    """Measure a run and its workers, and add them to ``pids``, all its processes so far.

    Returns:
        ``memory`` in MiB, ``files`` that are open, and ``shared``, the number of files in shared
        memory, including those of workers that have ended.
    """
    if process.poll() is not None:
        sys.exit(f'error: The run ended with exit status {process.returncode}.')
    main_process = psutil.Process(process.pid)
    memory = files = 0
    for one in (main_process, *main_process.children(recursive=True)):
        pids.add(one.pid)
        try:
            info = one.memory_full_info()
            # Workers share most pages with their parent.
            memory += (info.rss if one == main_process else info.uss) / 2**20
            files += one.num_fds()
        except psutil.Error:
            continue  # a worker that has just ended
    # PyTorch names its files torch_PID_...; other programs have files there too.
    owners = [re.match(r'torch_(\d+)_', path.name) for path in SHARED_MEMORY.iterdir()]
    shared = sum(owner is not None and int(owner[1]) in pids for owner in owners)
    return dict(memory=memory, files=files, shared=shared)


def has_leaks(samples: Sequence[dict[str, float]], args: argparse.Namespace) -> bool:
    """Print and compare the first and the last quarter after the warm-up."""
    compared = samples[int(len(samples) * args.warm_up / args.minutes) :]
    quarter = max(1, len(compared) // 4)
    has_grown = False
    # The maximum of a quarter, since epochs, evaluations and checkpoints alternate. Files in shared
    # memory exist briefly when a tensor is passed on; only those that leak are in every sample.
    for name, allowed, choose in (('memory', 1.05, max), ('files', 1.0, max), ('shared', 1.0, min)):
        first, last = (
            choose(sample[name] for sample in part)
            for part in (compared[:quarter], compared[-quarter:])
        )
        print(f'{name}: {first:.0f} in the first quarter, {last:.0f} in the last one')
        has_grown |= last > first * allowed
    return has_grown


def plot(samples: Sequence[dict[str, float]], args: argparse.Namespace) -> None:
    """Plot memory and open files over time."""
    minutes = [index / 30 for index in range(len(samples))]
    figure = Figure(figsize=(9, 5), layout='constrained')
    labels = dict(memory='memory, MiB', files='open files')
    for axes, (name, label) in zip(figure.subplots(2, sharex=True), labels.items(), strict=True):
        axes.plot(minutes, [sample[name] for sample in samples], linewidth=0.8)
        axes.axvline(args.warm_up, color='grey', linestyle=':')
        axes.set(ylabel=label, ylim=(0, None))
    axes.set(xlabel='minutes of training')
    with atomic_write(args.plot) as path:
        figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
