"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError

# What the folders are called in which files are half written.
UNFINISHED = '.unfinished-'
# Writing to a full disk fails with one of these, and no file name.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What pictures to write may end in.
PICTURES = ('.png', '.svg', '.pdf')


@contextlib.contextmanager
def atomic_write(destination: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``destination`` if the block succeeds.

    Args:
        destination: The file or Core ML package to write. Its parent directory is created. No
            directory is replaced, except a Core ML package by another one.

    Yields:
        A path of the same name on the same disk. Other files that the block writes next to it are
        moved too.

    Raises:
        UserError: If ``destination`` is a directory or cannot be written. Other errors of the block
            pass through.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(folder + '/new/a.txt') as path:
        ...         _ = path.write_text('complete')
        ...     open(folder + '/new/a.txt').read()
        'complete'
    """
    destination = Path(destination)
    if os.path.isdir(destination) and not is_core_ml_package(destination):
        raise UserError(f'{destination} is an existing directory. Give another file name.')
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=UNFINISHED) as folder:
            part = Path(folder, destination.name)
            yield part
            # What others wait for comes last.
            for written in sorted(Path(folder).iterdir(), key=lambda path: path == part):
                replace(written, destination.parent / written.name)
    except OSError as error:
        if not is_of_writing(error, destination):
            raise
        raise UserError(f'{destination} cannot be written ({error}).') from error


def replace(written: Path, destination: Path) -> None:
    """Move a file, or a Core ML package, to where another one may be."""
    old = written.with_suffix('.replaced')
    if written.is_dir() and is_core_ml_package(destination):
        destination.rename(old)
    try:
        os.replace(written, destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise


def is_core_ml_package(path: Path) -> bool:
    """Whether a directory is a Core ML package."""
    return path.suffix == '.mlpackage' and (path / 'Manifest.json').is_file()


def is_of_writing(error: OSError, destination: Path) -> bool:
    """Whether writing ``destination`` failed, and not something else in the block."""
    path = Path(str(error.filename))
    folders = (destination.parent, *destination.parent.parents)
    return error.errno in DISK_FULL or UNFINISHED in str(path) or path in folders


def remove_leftovers(folder):
    """Remove what killed processes have left half written.

    Args:
        folder (str | Path): Where they wrote to.
    """
    for path in Path(folder).glob(f'{UNFINISHED}*'):
        shutil.rmtree(path, ignore_errors=True)


def check_ending(path, endings):
    """Check the ending of a file to write.

    Args:
        path (str | Path): The file.
        endings (Collection[str]): What it may end in, such as ``'.png'``.

    Raises:
        UserError: If it ends otherwise.

    Example:
        >>> check_ending('a/picture.png', ['.png', '.svg'])
    """
    if Path(path).suffix not in endings:
        raise UserError(f'{path} must end in {" or ".join(endings)}.')
