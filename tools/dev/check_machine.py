"""Check that this machine can build the environment, before minutes are spent on it.

Usage: python tools/dev/check_machine.py VENV
"""

import os
import shutil
import sys
import sysconfig

# 6 for the environment, as much again for pip's downloads and mmcv's build.
NEEDED_GIB = 12


def find_problem(venv: str) -> str:
    """Return the first problem and what to do about it, empty if there is none."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        return (
            f'{sys.executable} is Python {sys.version.split()[0]}; the pinned libraries need '
            '3.10 to 3.13: name another one with make PYTHON=path.'
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        return (
            f'{sys.executable} cannot make environments: install its venv module (Debian and '
            'Ubuntu: apt-get install python3-venv).'
        )
    compiler = os.environ.get('CXX') or 'c++'
    if not shutil.which(compiler.split()[0]):
        return (
            f'the C++ compiler {compiler} was not found, and mmcv compiles its operators: install '
            'one (Debian and Ubuntu: apt-get install g++) or name it in CXX.'
        )
    header = os.path.join(sysconfig.get_path('include'), 'Python.h')
    if not os.path.exists(header):
        return (
            f'{header} was not found, and mmcv compiles its operators: install the headers of '
            'Python (Debian and Ubuntu: apt-get install python3-dev).'
        )
    parent = os.path.dirname(os.path.abspath(venv))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    free_gib = shutil.disk_usage(parent).free / 2**30
    if free_gib < NEEDED_GIB:
        return (
            f'{parent} has {free_gib:.1f} GiB free; the environment needs {NEEDED_GIB}: make room, '
            'or put it elsewhere with make VENV=path.'
        )
    return ''


if __name__ == '__main__':
    problem = find_problem(sys.argv[1])
    if problem:
        sys.exit(f'error: {problem}')
