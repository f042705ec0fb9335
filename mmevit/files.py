"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


@contextlib.contextmanager
def written_whole(destination):
    """Give a path to write to, which takes the place of ``destination`` if the block succeeds.

    Args:
        destination (str | Path): The file to be; its folder is made if need be.

    Yields:
        Path: A file of that name on the same disk.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(folder + '/new/a.txt') as path:
        ...         _ = path.write_text('whole')
        ...     open(folder + '/new/a.txt').read()
        'whole'
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        part = Path(folder, destination.name)
        yield part
        os.replace(part, destination)
