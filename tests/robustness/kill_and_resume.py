"""Kill and resume a training run repeatedly, and compare it with an uninterrupted run.

The run is killed (SIGKILL) during iterations, while it writes a checkpoint, and during evaluation.
The last checkpoints of both runs must be equal bit for bit.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mmevit.checkpoint import read_checkpoint
from mmevit.utils.files import UNFINISHED

TRAIN = Path(__file__).parents[2] / 'tools/train.py'
# Data loader workers check for their parent every five seconds.
SECONDS_TO_END = 15


# When a run can be killed, from its log and its work directory.
PHASES: dict[str, Callable[[Path, Path], bool]] = {
    'iteration': lambda log, _: '(train)' in log.read_text(),
    'checkpoint': lambda _, work_dir: any(work_dir.glob(f'{UNFINISHED}*/*.pth')),
    'evaluation': lambda log, _: '(val)' in log.read_text(),
}


def main() -> None:
    """Run both and compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, with a seed in randomness')
    parser.add_argument('work_dir', type=Path, help='new folder for both runs')
    parser.add_argument('--kills', type=int, default=30, help='minimum number of kills')
    parser.add_argument('--seed', type=int, default=0, help='seed of the times of the kills')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='see tools/train.py'
    )
    args = parser.parse_args()
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    command = [sys.executable, str(TRAIN), args.config, *options, '--work-dir']
    reference, killed = args.work_dir / 'uninterrupted', args.work_dir / 'killed'
    console = Console()
    with console.status('uninterrupted run'):
        subprocess.run([*command, reference], check=True, capture_output=True)
    counts = run_and_kill([*command, str(killed), '--resume'], killed, args)
    differences = compare(*map(last_checkpoint, (reference, killed)))

    table = Table('killed during', 'times')
    for phase, count in counts.items():
        table.add_row(phase, str(count))
    console.print(table)
    table = Table('part of the checkpoint', 'values', 'different')
    for part, (differing, number) in differences.items():
        table.add_row(part, str(number), str(differing))
    console.print(table)
    sys.exit(any(differing for differing, _ in differences.values()))


def run_and_kill(command: list[str], work_dir: Path, args: argparse.Namespace) -> dict[str, int]:
    """Start or resume a run until it ends, and count the kills in each phase."""
    counts = dict.fromkeys(PHASES, 0)
    rng = random.Random(args.seed)
    marker = uuid.uuid4().hex
    for phase in itertools.cycle(PHASES):
        is_last = sum(counts.values()) >= args.kills
        was_killed = run_until('end' if is_last else phase, command, work_dir, rng, marker)
        wait_for_processes(marker)
        counts[phase] += was_killed
        print(f'{sum(counts.values())} of {args.kills} kills', file=sys.stderr, flush=True)
        if not was_killed:
            if not is_last:
                sys.exit('error: The run ended before all kills. Train for more epochs.')
            return counts


def run_until(
    phase: str, command: list[str], work_dir: Path, rng: random.Random, marker: str
) -> bool:
    """Run a command, and kill its process in a phase, in none if it is ``'end'``.

    Returns:
        Whether it was killed, else it has succeeded.
    """
    environment = os.environ | dict(MMEVIT_KILL_RUN=marker)
    log = work_dir.with_suffix('.log')
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    is_in_phase = PHASES.get(phase, lambda *_: False)
    while process.poll() is None:
        if is_in_phase(log, work_dir):
            time.sleep(rng.uniform(0, 2) if phase == 'iteration' else rng.uniform(0, 0.02))
            process.kill()
        # Writing a checkpoint takes a few milliseconds.
        time.sleep(0.0005 if phase == 'checkpoint' else 0.05)
    if process.returncode not in (0, -9):
        sys.exit(f'error: The run failed:\n{log.read_text()[-3000:]}')
    return process.returncode == -9


def wait_for_processes(marker: str) -> None:
    """Wait until all processes of a run have ended."""
    deadline = time.monotonic() + SECONDS_TO_END
    while orphans := [process for process in psutil.process_iter() if belongs(process, marker)]:
        if time.monotonic() > deadline:
            sys.exit(f'error: Processes are left after the run: {orphans}.')
        time.sleep(0.2)


def belongs(process: psutil.Process, marker: str) -> bool:
    """Whether a process belongs to a run and is not a zombie."""
    try:
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return not is_zombie and process.environ().get('MMEVIT_KILL_RUN') == marker
    except psutil.Error:
        return False


def last_checkpoint(work_dir: Path) -> dict:
    """Read the last checkpoint of a work directory."""
    return read_checkpoint((work_dir / 'last_checkpoint').read_text())


def compare(ours: dict, theirs: dict) -> dict[str, tuple[int, int]]:
    """Count the values that differ in two checkpoints, and all values, for each of their parts."""
    result = {}
    for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
        pairs = list(zip(leaves(ours.get(part)), leaves(theirs.get(part)), strict=True))
        differing = sum(not torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)
        if pairs:
            result[part] = (differing, len(pairs))
    return result


def leaves(value: Any) -> Iterator[Any]:
    """Yield all numbers and tensors in nested dicts and lists."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, (bool, int, float, torch.Tensor)):
        yield value


if __name__ == '__main__':
    main()
