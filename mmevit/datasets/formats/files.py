"""The files of a data set: images, label files by type, splits by folder."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from mmevit.utils.errors import ConfigError
from mmevit.utils.inputs import IMAGE_SUFFIXES

# Splits in the order of files and tables, and the names of folders and files that mean them.
SPLITS = ('train', 'val', 'test')
SPLIT_NAMES = dict(
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
        excluded: Files that are left out.

    Raises:
        ConfigError: If it is missing or contains no image.
    """

    def __init__(self, root: str | Path, excluded: Iterable[PurePosixPath] = ()) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(f'The folder {root} is missing. Pass the folder of a data set.')
        self.paths = sorted(set(list_files(self.root)) - set(excluded))
        self.images = self.ending(*IMAGE_SUFFIXES)
        if not self.images:
            raise ConfigError(
                f'{root} contains no images, which end in {", ".join(IMAGE_SUFFIXES)}.'
            )

    def ending(self, *suffixes: str) -> list[PurePosixPath]:
        """List the files that end in one of some suffixes, in lower or upper case."""
        return [path for path in self.paths if path.suffix.lower() in suffixes]

    @cached_property
    def images_by_name(self) -> dict[str, dict[PurePosixPath, list[PurePosixPath]]]:
        """The images of each normalized name, and of each one without its suffix, by folder."""
        index: defaultdict = defaultdict(lambda: defaultdict(list))
        for path in self.images:
            for name in (path.name, path.stem):
                index[normalize(name)][path.parent].append(path)
        return index

    @cached_property
    def image_folders(self) -> list[PurePosixPath]:
        """The folders with images."""
        return list(dict.fromkeys(path.parent for path in self.images))

    def has_image(self, label_file: PurePosixPath) -> bool:
        """Whether there is an image with the name of a label file, in any folder."""
        return normalize(label_file.stem) in self.images_by_name

    def read_text(self, path: PurePosixPath) -> str:
        """Read a text file, with or without a byte order mark; raise ConfigError if it is not."""
        try:
            return (self.root / path).read_text(encoding='utf-8-sig')
        except UnicodeDecodeError as error:
            raise ConfigError(f'{self.root / path} is not text in UTF-8. Convert it.') from error


def normalize(name: str) -> str:
    """Compose accents, which macOS writes as characters of their own."""
    return unicodedata.normalize('NFC', name)


def list_files(root: Path) -> Iterator[PurePosixPath]:
    """List the files below a folder, which may contain links to folders."""
    visited = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        if (folder := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(folder)
        # macOS adds such a folder to its archives.
        folders[:] = [name for name in folders if name[0] != '.' and name != '__MACOSX']
        relative = PurePosixPath(Path(parent).relative_to(root).as_posix())
        yield from (relative / name for name in names if name[0] != '.')


def split_of(*names: str) -> str:
    """Return the split that some names of folders or files mean, ``''`` if none does.

    A name that equals a split apart from digits wins over one that only contains it. Of several,
    the first wins.

    Example:
        >>> split_of('images', 'valid'), split_of('instances_train2017'), split_of('trains')
        ('val', 'train', '')
        >>> split_of('test_site', 'train')
        'train'
    """
    words = [re.findall('[a-z]+', name.lower()) for name in names]
    for word in [*(found[0] for found in words if len(found) == 1), *sum(words, [])]:
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ''
