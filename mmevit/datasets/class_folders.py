"""List images for classification in class folders."""

from pathlib import Path

from mmevit.utils.errors import ConfigError, shorten, warn
from mmevit.utils.inputs import IMAGE_SUFFIXES

from .formats.files import SPLIT_NAMES, split_of
from .formats.splits import hold_out

Labelled = list[tuple[str, int]]
Folders = dict[str, list[str]]  # paths of images by class


def split_class_folders(
    root: str | Path, val_fraction: float = 0.2, seed: int = 0
) -> tuple[tuple[str, ...], Labelled, Labelled]:
    """List the images of class folders for training and for validation.

    The classes are the folders in ``root`` or in ``root/train``. Some images of each are held out
    for validation, series of similar images together, unless there are ``root/train`` and
    ``root/val`` or ``root/test``, also under names such as ``Training`` or ``seg_test``::

        root/cat/anything.jpg    or    root/train/cat/anything.jpg
        root/dog/any/where.png         root/val/dog/any/where.png

    Args:
        root: The folder.
        val_fraction: Fraction of each class that is held out, between 0 and 1, rounded to at least
            one image.
        seed: Seed of the random split.

    Returns:
        The names of the classes in order, and the images for training and for validation, each a
        list of pairs of the path relative to ``root`` and the number of the class.

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
        (('cat', 'dog'), [('cat/2.png', 0), ('dog/2.png', 1)], [('cat/1.png', 0), ('dog/1.png', 1)])
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f'The folder {root} is missing. Pass a folder with one folder per class.')
    if not 0 < val_fraction < 1:
        raise ConfigError(f'val_fraction is {val_fraction}. Pass a value between 0 and 1.')
    splits = find_splits(root)
    train_name, val_name = splits.get('train', '.'), splits.get('val', splits.get('test'))
    train = find_images(root, train_name)
    if val_name:
        val = find_images(root, val_name)
        if extra := val.keys() - train.keys():
            raise ConfigError(
                f'{root / val_name} has the classes {shorten(sorted(extra))}, which are missing in '
                f'{root / train_name}. Give both folders the same classes.'
            )
    else:
        val = {}
        for name, paths in train.items():
            if len(paths) < 2:
                raise ConfigError(
                    f'The class {name} has only one image. Add images: training and validation '
                    'need at least one each.'
                )
            train[name], val[name] = hold_out(root, paths, val_fraction, seed)
    if len(train) < 2 or not val:
        raise ConfigError(
            f'{root} has {len(train)} training and {len(val)} validation classes, but needs at '
            'least two and one. Add one folder per class.'
        )
    classes = tuple(train)
    train, val = (
        [(path, classes.index(name)) for name, paths in images.items() for path in paths]
        for images in (train, val)
    )
    return classes, train, val


def find_splits(root: Path) -> dict[str, str]:
    """Return the folders of splits, relative to ``root``, by split; empty if they are classes."""
    names = list_folders(root)
    splits: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.lower() not in SPLIT_NAMES):
        if (split := split_of(name)) and list_folders(root / name):
            splits.setdefault(split, name)
    train = splits.get('train')
    # A training folder with images in it is a class: there are pictures of trains.
    if (
        train is None
        or (len(splits) == 1 and train.lower() not in SPLIT_NAMES)
        or any(
            is_image(path) and path.is_file() and not is_hidden(path, root)
            for path in (root / train).iterdir()
        )
    ):
        return {}
    if others := [name for name in names if name not in splits.values()]:
        warn(f'{shorten(others)} in {root} are left out: they are not splits with class folders.')
    # Archives of Kaggle have train/train.
    return {
        split: f'{name}/{name}' if list_folders(root / name) == [name] else name
        for split, name in splits.items()
    }


def list_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, without hidden ones."""
    # macOS adds such a folder to its archives.
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and path.name[0] != '.' and path.name != '__MACOSX'
    )


def is_image(path: Path) -> bool:
    """Whether the name of a file is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a file, or a folder that it is in, is hidden."""
    return any(name[0] == '.' for name in path.relative_to(root).parts)


def find_images(root: Path, part: str) -> Folders:
    """List the images in the class folders of a part by class, and warn of other files."""
    images, others = {}, []
    for folder in list_folders(root / part):
        paths = sorted((root / part / folder).rglob('*'))
        files = [path for path in paths if path.is_file() and not is_hidden(path, root)]
        images[folder] = [path.relative_to(root).as_posix() for path in files if is_image(path)]
        others += [path for path in files if not is_image(path)]
    if empty := [name for name, paths in images.items() if not paths]:
        raise ConfigError(
            f'{root / part} has no images in {shorten(empty)}. Each folder must contain images '
            f'of a class, which end in {", ".join(IMAGE_SUFFIXES)}.'
        )
    if others:
        warn(
            f'{len(others)} files are left out, such as {others[0]}: images end in '
            f'{", ".join(IMAGE_SUFFIXES)}.'
        )
    return images
