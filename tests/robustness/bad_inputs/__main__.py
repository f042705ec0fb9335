"""Run the commands on all kinds of bad input, and tabulate the outcomes.

Usage: python tests/robustness/bad_inputs [--only WORDS] [--out TABLE]

A command may refuse an input, with an error message and an exit status, or survive it, with a
warning if data are lost. The exit status is 1 if there is any other outcome: a traceback, a hang, a
crash of the process, or a missing warning.
"""

import argparse
import itertools
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

# Imported once, since each case runs in a fork of this process.
import mmpretrain.datasets
import mmpretrain.models  # noqa: F401
import torch
from cases import Case, make_cases
from rich.progress import track

import mmevit  # noqa: F401
from mmevit.datasets import prepare_digits
from mmevit.utils.tables import format_table, write_table

TOOLS = Path(__file__).parents[3] / 'tools'
SECONDS = 120
COLUMNS = dict(
    kind=('input', '{}'),
    tool=('command', '{}'),
    outcome=('outcome', '{}'),
    last=('last line, or the warning', '{}'),
)


def main() -> None:
    """Run all cases, and print the table and their number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', default='', help='part of the names of the cases to run')
    parser.add_argument('--out', help='output table, .md, .csv or .json')
    args = parser.parse_args()
    cases = [case for case in make_cases() if args.only in case.kind]
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(os.cpu_count()) as pool:
        data = Path(root) / 'digits'
        prepare_digits(data, num_train=8, num_val=4, image_size=96)
        folders = [Path(root) / f'{index:03d}' for index in range(len(cases))]
        results = pool.map(run, cases, folders, itertools.repeat(data))
        rows = list(track(results, f'{len(cases)} cases', len(cases)))
    bad = [row for row in rows if row['outcome'].isupper()]
    print(format_table(rows, COLUMNS))
    kinds = len({row['kind'] for row in rows})
    note = f'{kinds} kinds of bad input in {len(rows)} runs; {len(bad)} with a wrong outcome.'
    print(f'\n{note}')
    if args.out:
        write_table(rows, COLUMNS, note, args.out)
    sys.exit(bool(bad))


def run(case: Case, folder: Path, data: Path) -> dict:
    """Run a case in its own process, and return a row; an outcome in capitals is wrong."""
    shutil.copytree(data, folder / 'data/digits')
    command = [str(part) for part in case.make(folder)]
    log = folder / 'output.txt'
    process = os.fork()
    if process == 0:
        run_tool(command, folder, log)
    status = wait(process)
    lines = [line.rstrip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    outcome, last = classify(case, status, lines)
    return dict(kind=case.kind, tool=command[0], outcome=outcome, last=last[-300:])


def run_tool(command: list[str], folder: Path, log: Path) -> NoReturn:
    """Run a tool in this process, with output to ``log``, and exit."""
    os.setsid()
    with log.open('w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = command
    code = 0
    try:
        runpy.run_path(str(TOOLS / command[0]), run_name='__main__')
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def wait(process: int) -> int | None:
    """Return the exit status of a process, or kill its group and return None after a timeout."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def classify(case: Case, status: int | None, lines: list[str]) -> tuple[str, str]:
    """Return the outcome of a case and the line that shows it."""
    last = lines[-1] if lines else ''
    warnings = [line for line in lines if case.warning and case.warning in line]
    if status is None:
        return 'HANGS', last
    if status < 0:
        return 'CRASHES', last
    if status:
        is_sentence = last.startswith('error: ') or ': error: ' in last or case.tool_reports
        if not is_sentence:
            return 'TRACEBACK', last
        outcome = 'refused after a traceback' if 'Traceback' in ' '.join(lines) else 'refused'
        return (outcome if not case.survives else 'REFUSED'), last
    if not case.survives:
        return 'ACCEPTED', last
    if case.warning and not warnings:
        return 'SILENT', last
    return 'survived', warnings[0] if warnings else last


if __name__ == '__main__':
    main()
