"""Train for half an hour, and see that memory, open files and shared memory stay as they were.

Epochs follow each other as in any run, with an evaluation and a checkpoint after each. Ends with 1
if the memory of all its processes has grown by more than 5 % after the warm-up, or if there are
more open files or more files in shared memory.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
from matplotlib.figure import Figure
from rich.progress import track

from mmevit.utils.configs import read_config
from mmevit.utils.files import atomic_write

TRAIN = Path(__file__).parents[2] / 'tools/train.py'
SHARED_MEMORY = Path('/dev/shm')


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('work_dir', type=Path, help='folder for the run')
    parser.add_argument('--minutes', type=float, default=30, help='how long')
    parser.add_argument('--warm-up', type=float, default=5, help='minutes that are not judged')
    parser.add_argument('--plot', help='picture to write')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    return parser.parse_args()


def main():
    """Train, look every two seconds, and judge."""
    args = parse_args()
    log = args.work_dir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, TRAIN, args.config, '--work-dir', args.work_dir]
    loop = read_config(args.config, None, needs=['train_cfg']).train_cfg
    length = 'max_iters' if 'max_iters' in loop else 'max_epochs'
    options = ['--cfg-options', f'train_cfg.{length}=100000000', *args.cfg_options]
    with log.open('w') as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=file)
    try:
        pids = set()
        samples = [look(process, pids) for _ in track(Paced(int(args.minutes * 30)), 'Training')]
    finally:
        process.terminate()
        process.wait()
    if args.plot:
        plot(samples, args)
    sys.exit(judge(samples, args))


class Paced:
    """Numbers, one every two seconds.

    Args:
        number (int): How many.
    """

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __iter__(self):
        start = time.monotonic()
        for index in range(self.number):
            time.sleep(max(0, start + 2 * index - time.monotonic()))
            yield index


def look(process, pids):
    """Measure a run and its workers.

    Args:
        process (Popen): The run.
        pids (set[int]): Processes that it has had, which is added to.

    Returns:
        dict[str, float]: ``memory`` in MiB, what the run holds and what each worker holds besides,
        ``files`` that are open, and ``shared``, the number of its files in shared memory, workers'
        that have ended included.
    """
    if process.poll() is not None:
        sys.exit(f'error: The run has ended with {process.returncode}.')
    main_process = psutil.Process(process.pid)
    memory = files = 0
    for one in (main_process, *main_process.children(recursive=True)):
        pids.add(one.pid)
        try:
            info = one.memory_full_info()
            # Workers share most pages with their parent, which counts for them.
            memory += (info.rss if one == main_process else info.uss) / 2**20
            files += one.num_fds()
        except psutil.Error:
            continue  # a worker that has just ended
    # PyTorch names them torch_PID_..., and other programs have some as well.
    owners = [re.match(r'torch_(\d+)_', path.name) for path in SHARED_MEMORY.iterdir()]
    shared = sum(owner is not None and int(owner[1]) in pids for owner in owners)
    return dict(memory=memory, files=files, shared=shared)


def judge(samples, args):
    """Compare the first quarter after the warm-up with the last one, and print both.

    Args:
        samples (list[dict]): What was measured.
        args (argparse.Namespace): The parsed command line.

    Returns:
        bool: Whether something has grown.
    """
    judged = samples[int(len(samples) * args.warm_up / args.minutes) :]
    quarter = max(1, len(judged) // 4)
    has_grown = False
    # The most in a quarter, since epochs, evaluations and checkpoints take turns; but a file in
    # shared memory that is handed over is there for a moment, and one that leaks stays.
    for name, allowed, choose in (('memory', 1.05, max), ('files', 1.0, max), ('shared', 1.0, min)):
        first, last = (
            choose(sample[name] for sample in part)
            for part in (judged[:quarter], judged[-quarter:])
        )
        print(f'{name}: {first:.0f} in the first quarter, {last:.0f} in the last one')
        has_grown |= last > first * allowed
    return has_grown


def plot(samples, args):
    """Draw memory and open files over time.

    Args:
        samples (list[dict]): What was measured.
        args (argparse.Namespace): The parsed command line.
    """
    minutes = [index / 30 for index in range(len(samples))]
    figure = Figure(figsize=(9, 5), layout='constrained')
    for axes, name, label in zip(
        figure.subplots(2, sharex=True),
        ('memory', 'files'),
        ('memory, MiB', 'open files'),
        strict=True,
    ):
        axes.plot(minutes, [sample[name] for sample in samples], linewidth=0.8)
        axes.axvline(args.warm_up, color='grey', linestyle=':')
        axes.set(ylabel=label, ylim=(0, None))
    axes.set(xlabel='minutes of training')
    with atomic_write(args.plot) as path:
        figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
