"""Run the commands of Markdown pages, as they are written there, and print how long each takes.

    python tools/dev/run_commands.py README.md

A comment after a command may state its time, which is printed next to the measured one.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

BLOCK = re.compile(r'^```bash\n(.*?)^```$', re.MULTILINE | re.DOTALL)
STATED = re.compile(r'#.*?([\d.]+) (second|minute)s?\b')


def main() -> None:
    """Run the commands one after the other in one shell, until one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pages', nargs='+', type=Path, help='Markdown files')
    args = parser.parse_args()
    commands = [command for page in args.pages for command in find_commands(page.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder, 'times')
        status = subprocess.run(['bash', '-c', make_script(commands), 'bash', times]).returncode
        seconds = [float(line) for line in times.read_text().split()] if times.exists() else []
    table = Table('command', 'said to take, s', 'took, s')
    for command, taken in zip(commands, seconds, strict=False):
        table.add_row(command.split('  #')[0], stated_seconds(command), f'{taken:.0f}')
    Console().print(table)
    if status:
        sys.exit(f'error: this command failed with status {status}: {commands[len(seconds)]}')


def find_commands(text: str) -> list[str]:
    r"""Find the commands in the ``bash`` blocks of a page, each with the comment behind it.

    Example:
        >>> find_commands('Do\n```bash\nls  # 1 second\necho \\\n    a\n\n# b\n```\n')
        ['ls  # 1 second', 'echo \\\n    a']
    """
    lines = ''.join(BLOCK.findall(text)).replace('\\\n', '\0').splitlines()
    return [line.replace('\0', '\\\n') for line in lines if line and not line.startswith('#')]


def make_script(commands: list[str]) -> str:
    """Write the shell script that runs commands and writes the seconds of each to its argument."""
    # A command may change the shell, as activating an environment does: one shell runs them all.
    lines = ['set -euo pipefail', 'times=$1', 'shift']
    for command in commands:
        lines += [
            f"cat <<'COMMAND'\n\n$ {command}\nCOMMAND",
            'start=$EPOCHREALTIME',
            command,
            'echo "$EPOCHREALTIME $start" | awk \'{ print $1 - $2 }\' >> "$times"',
        ]
    return '\n'.join(lines)


def stated_seconds(command: str) -> str:
    """Read from the comment behind a command how many seconds it is said to take, if any.

    Example:
        >>> stated_seconds('make demo  # in 5 minutes')
        '300'
    """
    match = STATED.search(command)
    return f'{float(match[1]) * (60 if match[2] == "minute" else 1):.0f}' if match else ''


if __name__ == '__main__':
    main()
