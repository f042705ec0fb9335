"""Kill a training run again and again, and see that it ends as if it had been left alone.

A run of the config that is left alone is compared, bit for bit, with one that is killed (SIGKILL)
while it iterates, while it writes a checkpoint, and while it evaluates, and resumed each time.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mmevit.checkpoint import read_checkpoint
from mmevit.utils.files import UNFINISHED

TRAIN = Path(__file__).parents[2] / 'tools/train.py'
# Data loaders look for their parent every five seconds.
SECONDS_TO_END = 15


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, with a seed in randomness')
    parser.add_argument('work_dir', type=Path, help='folder for both runs, which is not there yet')
    parser.add_argument('--kills', type=int, default=30, help='how many, at least')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments to kill at')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='as tools/train.py has it'
    )
    return parser.parse_args()


def main():
    """Run both, and compare."""
    args = parse_args()
    command = [sys.executable, str(TRAIN), args.config]
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    alone, disturbed = args.work_dir / 'alone', args.work_dir / 'disturbed'
    console = Console()
    with console.status('a run that is left alone'):
        subprocess.run([*command, '--work-dir', alone, *options], check=True, capture_output=True)
    counts = disturb([*command, '--work-dir', disturbed, '--resume', *options], disturbed, args)
    differences = compare(*map(last_checkpoint, (alone, disturbed)))
    print_result(console, counts, differences)
    sys.exit(any(differing for differing, _ in differences.values()))


def disturb(command, work_dir, args):
    """Start a run as often as it takes, and kill it as often as was asked for.

    Args:
        command (list[str]): What starts or resumes it.
        work_dir (Path): Its work directory.
        args (argparse.Namespace): The parsed command line.

    Returns:
        dict[str, int]: How often it was killed in which phase.
    """
    counts = dict.fromkeys(PHASES, 0)
    rng = random.Random(args.seed)
    marker = uuid.uuid4().hex
    for phase in itertools.cycle(PHASES):
        is_last = sum(counts.values()) >= args.kills
        was_killed = run_until('end' if is_last else phase, command, work_dir, rng, marker)
        wait_for_the_end(marker)
        counts[phase] += was_killed
        print(f'{sum(counts.values())} of {args.kills} kills', file=sys.stderr, flush=True)
        if not was_killed:
            if not is_last:
                sys.exit('error: The run ended before all kills: train for more epochs.')
            return counts


def run_until(phase, command, work_dir, rng, marker):
    """Run a command, and kill its process in some phase.

    Args:
        phase (str): A key of ``PHASES``, or ``'end'`` for never.
        command (list[str]): The command.
        work_dir (Path): Work directory of the run.
        rng (random.Random): Where delays are drawn from.
        marker (str): What the environment of all its processes holds.

    Returns:
        bool: Whether it was killed; else it has ended well.
    """
    environment = os.environ | dict(MMEVIT_KILL_RUN=marker)
    log = work_dir.with_suffix('.log')
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    has_come = PHASES.get(phase, lambda *_: False)
    while process.poll() is None:
        if has_come(log, work_dir):
            time.sleep(rng.uniform(0, 2) if phase == 'iteration' else rng.uniform(0, 0.02))
            process.kill()
        # A checkpoint is written in some milliseconds.
        time.sleep(0.0005 if phase == 'checkpoint' else 0.05)
    if process.returncode not in (0, -9):
        sys.exit(f'error: The run failed:\n{log.read_text()[-3000:]}')
    return process.returncode == -9


def wait_for_the_end(marker):
    """Wait until no process of a run is left.

    Args:
        marker (str): What the environment of its processes holds.
    """
    deadline = time.monotonic() + SECONDS_TO_END
    while orphans := [process for process in psutil.process_iter() if is_of(process, marker)]:
        if time.monotonic() > deadline:
            sys.exit(f'error: Processes outlive the run: {orphans}.')
        time.sleep(0.2)


def is_of(process, marker):
    """Whether a process is of a run, and not only left to be waited for."""
    try:
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return not is_zombie and process.environ().get('MMEVIT_KILL_RUN') == marker
    except psutil.Error:
        return False


def last_checkpoint(work_dir):
    """Read the last checkpoint of a work directory."""
    return read_checkpoint((work_dir / 'last_checkpoint').read_text())


def compare(ours, theirs):
    """List the parts of two checkpoints that differ in any bit.

    Args:
        ours (dict): One.
        theirs (dict): The other.

    Returns:
        dict[str, tuple[int, int]]: For each part, how many of its tensors differ, of how many.
    """
    result = {}
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        pairs = list(zip(leaves(ours.get(part)), leaves(theirs.get(part)), strict=True))
        differing = sum(not torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        if pairs:
            result[part] = (differing, len(pairs))
    return result


def leaves(value):
    """Yield all numbers and tensors in a nest of dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (bool, int, float, torch.Tensor)):
        yield value


def print_result(console, counts, differences):
    """Print how often what was killed, and what differs.

    Args:
        console (Console): Where to.
        counts (dict[str, int]): Kills by phase.
        differences (dict[str, tuple[int, int]]): By part of the checkpoint.
    """
    table = Table('killed during', 'times')
    for phase, count in counts.items():
        table.add_row(phase, str(count))
    console.print(table)
    table = Table('part of the checkpoint', 'values', 'that differ')
    for part, (differing, number) in differences.items():
        table.add_row(part, str(number), str(differing))
    console.print(table)


def is_iterating(log, work_dir):
    """Whether the log of a run tells of an iteration."""
    return '(train)' in log.read_text()


def is_writing(log, work_dir):
    """Whether a checkpoint is being written."""
    return any(work_dir.glob(f'{UNFINISHED}*/*.pth'))


def is_evaluating(log, work_dir):
    """Whether the log of a run tells of an evaluation."""
    return '(val)' in log.read_text()


PHASES = {'iteration': is_iterating, 'checkpoint': is_writing, 'evaluation': is_evaluating}

if __name__ == '__main__':
    main()
