"""Refuse data whose files are missing."""

import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from mmevit.utils.errors import ConfigError


class MissingFilesError(ConfigError):
    """Files that a config names are not on this machine."""


def check_images(ann_file: Path, names: Collection[str], folder: Path) -> None:
    """Raise MissingFilesError if images that an annotation file names are not in a folder."""
    if missing := find_missing(names, folder):
        raise MissingFilesError(
            f'{ann_file} names {len(missing)} of {len(names)} images that are missing, such as '
            f'{missing[0]}: put the images into {folder}, or correct data_prefix'
        )


def find_missing(names: Collection[str], folder: str | Path = '') -> list[str]:
    """List the paths of the files that are missing, after one look at each folder.

    Args:
        names: Paths of the files, absolute or within ``folder``.
        folder: Where they are looked for.
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
