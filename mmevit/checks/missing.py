"""Find missing files."""

import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from mmevit.utils.errors import ConfigError


class MissingFilesError(ConfigError):
    """Files of a config are missing on this machine."""


def check_images(ann_file: str | Path, names: Collection[str], folder: str | Path) -> None:
    """Raise MissingFilesError if images of an annotation file are missing."""
    if missing := find_missing(names, folder):
        raise MissingFilesError(
            f'{len(missing)} of {len(names)} images of {ann_file} are missing, such as '
            f'{missing[0]}. Put the images into {folder}, or correct data_prefix.'
        )


def find_missing(names: Collection[str], folder: str | Path = '') -> list[str]:
    """List the paths of missing files, reading each folder only once.

    Args:
        names: Paths of the files, absolute or relative to ``folder``.
        folder: The folder.
    """
    names_by_parent = defaultdict(set)
    for path in names:
        parent, slash, name = path.rpartition('/')
        names_by_parent[parent + slash].add(name)
    missing = []
    for parent, expected in names_by_parent.items():
        parent = os.path.join(folder, parent)
        # Reading a pipe in the place of an image would block.
        entries = os.scandir(parent) if os.path.isdir(parent) else ()
        present = {entry.name for entry in entries if entry.is_file()}
        missing += [os.path.join(parent, name) for name in sorted(expected - present)]
    return missing
