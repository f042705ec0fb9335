"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from mmevit.errors import UserError

# What the folders are called in which files are half written.
UNFINISHED = '.unfinished-'
# What pictures to write may end in.
PICTURES = ('.png', '.svg', '.pdf')


@contextlib.contextmanager
def written_whole(destination):
    """Give a path to write to, which takes the place of ``destination`` if the block succeeds.

    Args:
        destination (str | Path): The file or folder to be; its parent is made if need be.

    Yields:
        Path: A path of that name on the same disk. What else the block writes beside it comes
        along.

    Raises:
        UserError: If the system does not let it be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(folder + '/new/a.txt') as path:
        ...         _ = path.write_text('whole')
        ...     open(folder + '/new/a.txt').read()
        'whole'
    """
    destination = Path(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=UNFINISHED) as folder:
            part = Path(folder, destination.name)
            yield part
            # What others wait for comes last.
            for written in sorted(Path(folder).iterdir(), key=lambda path: path == part):
                replaced = destination.parent / written.name
                if replaced.is_dir():
                    shutil.rmtree(replaced)
                os.replace(written, replaced)
    except OSError as error:
        raise UserError(f'{destination} cannot be written ({error}).') from error


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
