"""One's own images for classification: a folder for each class."""

import logging
import os
import random
from pathlib import Path

from mmengine.logging import print_log

from mmevit.utils.errors import ConfigError, shorten

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VAL_NAMES = ('val', 'valid', 'validation', 'test')


def split_class_folders(root, val_fraction=0.2, seed=0):
    """List the images of class folders for training and for validation.

    The classes are the folders in ``root``, or those in ``root/train``. Some images of each are
    held out for validation, unless there is ``root/val`` (or ``valid``, ``validation``, ``test``)
    beside ``root/train``::

        root/cat/anything.jpg    or    root/train/cat/anything.jpg
        root/dog/any/where.png         root/val/dog/any/where.png

    Args:
        root (str | Path): The folder.
        val_fraction (float): Fraction of each class that is held out, above 0 and below 1, rounded,
            but at least one image. Defaults to 0.2.
        seed (int): Seed of the choice. Defaults to 0.

    Returns:
        tuple: The names of the classes in order, and the images for training and for validation,
        each a list of pairs of the path within ``root`` and the number of the class.

    Raises:
        ConfigError: If there are fewer than two classes, or one has too few images.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ('cat/1.png', 'cat/2.png', 'dog/1.png', 'dog/2.png'):
        ...         path = Path(folder, name)
        ...         path.parent.mkdir(exist_ok=True)
        ...         path.touch()
        ...     split_class_folders(folder)
        (('cat', 'dog'), [('cat/1.png', 0), ('dog/1.png', 1)], [('cat/2.png', 0), ('dog/2.png', 1)])
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f'The folder {root} is missing: it is to hold a folder for each class.')
    if not 0 < val_fraction < 1:
        raise ConfigError(f'The fraction held out is {val_fraction}, but must be between 0 and 1.')
    # A folder of that name with images in it is a class: there are pictures of trains.
    is_split = (root / 'train').is_dir() and not any(map(is_image, (root / 'train').iterdir()))
    val_name = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    if is_split and val_name:
        train, val = find_images(root, 'train'), find_images(root, val_name)
        if surplus := val.keys() - train.keys():
            raise ConfigError(
                f'{root / val_name} has the classes {shorten(sorted(surplus))}, which '
                f'{root / "train"} has not.'
            )
    else:
        train, val = hold_out(find_images(root, 'train' if is_split else '.'), val_fraction, seed)
    if len(train) < 2 or not val:
        raise ConfigError(
            f'{root} has {len(train)} classes to train and {len(val)} to validate on, but two and '
            'one are needed at least: it is to hold a folder for each class.'
        )
    classes = tuple(train)
    listed = [
        [(path, classes.index(name)) for name, paths in images.items() for path in paths]
        for images in (train, val)
    ]
    return classes, *listed


def is_image(path):
    """Whether a path is a file that is named as an image."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and path.is_file()


def find_images(root, part):
    """Find the images of each class, and warn of files that are none.

    Args:
        root (Path): Folder that the paths start from.
        part (str): Folder in it that holds the class folders.

    Returns:
        dict[str, list[str]]: Sorted paths by the sorted names of the classes.

    Raises:
        ConfigError: If a class has no images.
    """
    images, others = {}, []
    for folder in sorted((root / part).iterdir()):
        # macOS puts such a folder into its archives.
        if not folder.is_dir() or folder.name.startswith('.') or folder.name == '__MACOSX':
            continue
        files = sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
        images[folder.name] = [
            path.relative_to(root).as_posix() for path in files if is_image(path)
        ]
        others += [path for path in files if not is_image(path)]
    if empty := [name for name, paths in images.items() if not paths]:
        raise ConfigError(
            f'{root / part} has no images in {shorten(empty)}: each folder is a class, and its '
            f'images end in {", ".join(SUFFIXES)}.'
        )
    if others:
        print_log(
            f'{len(others)} files are left out, such as {others[0]}: images end in '
            f'{", ".join(SUFFIXES)}.',
            logger='current',
            level=logging.WARNING,
        )
    return images


def hold_out(images, fraction, seed):
    """Hold out some images of each class.

    Args:
        images (dict[str, list[str]]): Paths by class.
        fraction (float): How many.
        seed (int): Seed of the choice.

    Returns:
        tuple[dict, dict]: What is left, and what is held out.

    Raises:
        ConfigError: If a class has one image alone.
    """
    kept, held_out = {}, {}
    for name, paths in images.items():
        if len(paths) < 2:
            raise ConfigError(
                f'The class {name} has one image alone: two or more are needed, to train on and to '
                'validate with.'
            )
        count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
        chosen = set(random.Random(f'{seed} {name}').sample(paths, count))
        kept[name] = [path for path in paths if path not in chosen]
        held_out[name] = [path for path in paths if path in chosen]
    return kept, held_out
