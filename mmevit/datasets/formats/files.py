"""The files of a data set: images by name, label files by type, splits by folder."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from mmevit.utils.errors import ConfigError
from mmevit.utils.inputs import IMAGE_SUFFIXES

# Splits in the order of files and tables, and the names of folders and files that mean them.
ORDER = ('train', 'val', 'test')
SPLITS = dict(
    train='train',
    training='train',
    val='val',
    valid='val',
    validation='val',
    test='test',
    testing='test',
)


class Files:
    """The files below a folder, in paths relative to it, without hidden ones.

    Args:
        root: The folder.

    Raises:
        ConfigError: If it is missing or contains no image.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(f'The folder {root} is missing. Pass the folder of a data set.')
        self.paths = sorted(list_files(self.root))
        if not self.images:
            raise ConfigError(
                f'{root} contains no images, which end in {", ".join(IMAGE_SUFFIXES)}.'
            )

    @cached_property
    def images(self) -> list[PurePosixPath]:
        """The images."""
        return self.ending(*IMAGE_SUFFIXES)

    def ending(self, *suffixes: str) -> list[PurePosixPath]:
        """List the files with one of the suffixes, in lower case."""
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    @cached_property
    def images_by_name(self) -> dict[str, list[PurePosixPath]]:
        """The images of each name, and of each name without its suffix."""
        index = defaultdict(list)
        for path in self.images:
            for name in {path.name, path.stem}:
                index[name].append(path)
        return index

    def find_images(self, name: str, label_file: PurePosixPath) -> list[PurePosixPath]:
        """Find the images that a label file can mean by a name; more than one if it is not clear.

        Args:
            name: Name of the image, with or without its folders and its suffix.
            label_file: The file, near which the image is.
        """
        wanted = PurePosixPath(name.replace('\\', '/'))
        found = self.images_by_name.get(wanted.name, [])
        if len(found) < 2:
            return found
        scores = [
            (
                count_common(path.parent.parts[::-1], wanted.parent.parts[::-1]),
                closeness(path.parent, label_file.parent),
            )
            for path in found
        ]
        return [path for path, score in zip(found, scores, strict=True) if score == max(scores)]


def list_files(root: Path) -> Iterable[PurePosixPath]:
    """List the files below a folder, which may contain links to folders."""
    for parent, folders, names in os.walk(root, followlinks=True):
        # macOS adds such a folder to its archives.
        folders[:] = [name for name in folders if name[0] != '.' and name != '__MACOSX']
        for name in names:
            if not name.startswith('.'):
                yield PurePosixPath(Path(parent, name).relative_to(root).as_posix())


def count_common(parts: Sequence[str], others: Sequence[str]) -> int:
    """Count the parts at the start that are the same."""
    pairs = zip(parts, others, strict=False)
    return next(
        (index for index, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(others))
    )


def closeness(folder: PurePosixPath, other: PurePosixPath) -> int:
    """Count the common parts of two folders at the start and at the end.

    Example:
        >>> labels = PurePosixPath('labels/train')
        >>> closeness(PurePosixPath('images/train'), labels)
        1
        >>> closeness(PurePosixPath('images/val'), labels)
        0
    """
    ends = count_common(folder.parts[::-1], other.parts[::-1])
    return count_common(folder.parts, other.parts) + ends


def split_of(*names: str) -> str:
    """Return the split that the first of some names of folders or files means, ``''`` if none.

    Example:
        >>> split_of('images', 'valid'), split_of('instances_train2017'), split_of('trains')
        ('val', 'train', '')
    """
    for name in names:
        for word in re.findall('[a-z]+', name.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return ''
