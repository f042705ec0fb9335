"""Atomic writing and endings of files, and addresses of weights."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from .errors import UserError

# Prefix of the temporary folders with unfinished files.
UNFINISHED = '.unfinished-'
# Writing to a full disk fails with one of these, and no file name.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Supported endings of figures.
PICTURES = ('.png', '.svg', '.pdf')


@contextlib.contextmanager
def atomic_write(destination: str | Path) -> Iterator[Path]:
    """Yield a path to write to, which replaces ``destination`` if the block succeeds.

    It has the same name, on the same disk. Other files that the block writes next to it are moved
    too. Missing directories are created; none is replaced, except a Core ML package by another one.

    Raises:
        UserError: If ``destination`` cannot be written. Other errors of the block pass through.
    """
    destination = Path(destination)
    if os.path.isdir(destination) and not is_core_ml_package(destination):
        raise UserError(f'{destination} is an existing directory. Give another file name.')
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=UNFINISHED) as folder:
            part = Path(folder, destination.name)
            yield part
            # The requested file last, as other processes may wait for it.
            for written in sorted(Path(folder).iterdir(), key=lambda path: path == part):
                replace(written, destination.parent / written.name)
    except OSError as error:
        if not is_write_error(error, destination):
            raise
        raise UserError(
            f'{destination} cannot be written ({error}). Check permissions and disk space.'
        ) from error


def replace(written: Path, destination: Path) -> None:
    """Move a file or a Core ML package, replacing an existing one."""
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


def is_write_error(error: OSError, destination: Path) -> bool:
    """Whether writing ``destination`` raised an error, not something else."""
    path = Path(str(error.filename))
    return error.errno in DISK_FULL or UNFINISHED in str(path) or path in destination.parents


def remove_leftovers(folder: str | Path) -> None:
    """Remove the unfinished files that killed processes have left in a folder."""
    for path in Path(folder).glob(f'{UNFINISHED}*'):
        shutil.rmtree(path, ignore_errors=True)


def check_ending(path: str | Path, endings: Collection[str]) -> None:
    """Raise UserError if a file to write does not end in one of ``endings``."""
    if Path(path).suffix not in endings:
        raise UserError(f'{path} must end in {" or ".join(endings)}.')


def find_pretrained(source: str | Path) -> str:
    """Return the address of weights.

    Args:
        source: An address such as ``evit://m0``, a file, a folder with ``model.safetensors``, or
            ``OWNER/REPO[@REVISION]`` on the Hugging Face Hub.
    """
    path = Path(source).expanduser().resolve()
    if '://' in str(source):
        return str(source)
    if path.is_dir():
        return f'evit://{path}/model.safetensors'
    return f'evit://{path}' if path.is_file() else f'hf://{source}'
