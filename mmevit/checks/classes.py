"""Check that data sets, class folders and checkpoints number the classes alike."""

import logging
import os
from collections.abc import Sequence
from itertools import zip_longest

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from mmevit.checkpoint.loader import find_dataset_meta
from mmevit.errors import CheckpointError, ConfigError, shorten
from mmevit.utils.configs import find_class, find_datasets, is_remote

SPLITS = ('train', 'val', 'test')


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Compare the classes of all data sets, and their class folders, by name and order.

    Args:
        cfg: The config.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run will use. For the others a
            difference is only logged.

    Raises:
        ConfigError: If two data sets that will be used give a number to different classes.
    """
    seen = {}
    used = [split for split in SPLITS if split in splits]
    others = [split for split in SPLITS if used and split not in used]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        for split in used + others:
            dataloader = cfg.get(f'{split}_dataloader')
            for dataset in find_datasets(dataloader['dataset']) if dataloader else ():
                place = f'the {split} data {dataset.get("ann_file") or ""}'.strip()
                for source, names in name_classes(dataset, place).items():
                    first = seen.setdefault(source, (names, place))
                    difference = find_difference(*first, names, place)
                    if difference and split in used:
                        raise ConfigError(f'{difference}. {ADVICE[source]}')
                    if difference:
                        message = f'{difference}. {ADVICE[source]} before using the {split} data.'
                        print_log(message, logger='current', level=logging.WARNING)


ADVICE = dict(
    classes='Give all data sets the same classes in the same order',
    folders='Give all data sets the same class folders, empty ones where there are no images',
)


def name_classes(dataset: dict, place: str) -> dict[str, tuple]:
    """Name the classes of a data set as its numbers count them.

    Args:
        dataset: Its config.
        place: What to call it.

    Returns:
        The ``classes``, and the ``folders`` if classes are folders, as far as they are known;
        nothing for a model that is given any names as text.

    Raises:
        ConfigError: If classes and folders contradict each other.
    """
    if dataset.get('return_classes'):
        return {}
    classes, folders = list_classes(dataset), list_class_folders(dataset)
    if classes and folders:
        is_same = sorted(map(str, classes)) == sorted(folders)
        if len(classes) != len(folders) or is_same and list(classes) != list(folders):
            raise ConfigError(
                f'{place[0].upper()}{place[1:]} have the class folders {shorten(folders)}, which '
                f'are numbered in this order, but metainfo.classes is {shorten(classes)}. Name '
                'the classes as the folders are sorted'
            )
    named = dict(classes=classes or folders, folders=folders)
    return {source: names for source, names in named.items() if names}


def list_classes(dataset: dict) -> tuple | None:
    """List the classes of a data set that its config, or else its type, names.

    Args:
        dataset: Its config.

    Returns:
        The names, or None if there are none or their file is missing.
    """
    classes = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if classes is None:
        classes = getattr(find_class(DATASETS, dataset), 'METAINFO', {}).get('classes')
    if isinstance(classes, str):
        classes = list_from_file(classes) if os.path.isfile(classes) else None
    return tuple(classes) if classes is not None else None


def list_class_folders(dataset: dict) -> tuple | None:
    """List the class folders of a data set of mmpretrain, in the order of their numbers.

    Args:
        dataset: Its config.

    Returns:
        The names, or None if its classes are no folders on this disk.
    """
    kind = find_class(DATASETS, dataset)
    if is_remote(dataset) or not inherits_from(kind, 'mmpretrain', 'CustomDataset'):
        return None
    from mmpretrain.datasets.custom import find_folders

    built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
    if built.ann_file or not built.with_label or not os.path.isdir(built.img_prefix):
        return None
    return tuple(find_folders(built.img_prefix)[0])


def inherits_from(kind: type | None, library: str, name: str) -> bool:
    """Whether a class is one of a library, or inherits from it; the library is not imported."""
    return any(
        base.__name__ == name and base.__module__.partition('.')[0] == library
        for base in getattr(kind, '__mro__', ())
    )


def find_difference(expected: Sequence, place: str, names: Sequence, other: str) -> str | None:
    """Say at which number two lists of classes differ first, if they do."""
    for number, (one, two) in enumerate(zip_longest(expected, names)):
        if one != two:
            one, two = ('missing' if name is None else repr(name) for name in (one, two))
            return f'Class {number} is {one} in {place}, but {two} in {other}'
    return None


def check_checkpoint_classes(checkpoint: dict, dataset: object) -> None:
    """Compare the classes that a checkpoint was trained on with those of a data set.

    Args:
        checkpoint: The checkpoint, in whose metadata the classes may be.
        dataset: The data set, as built.

    Raises:
        CheckpointError: If they differ.
    """
    trained = find_dataset_meta(checkpoint.get('meta')).get('classes') or ()
    trained = (trained,) if isinstance(trained, str) else trained
    metas = getattr(dataset, 'metainfo', ())
    # mmdet lists those of a concatenation that differ, were it only in their colours.
    for meta in [metas] if isinstance(metas, dict) else metas:
        classes = meta.get('classes')
        if not trained or not classes or getattr(dataset, 'return_classes', False):
            continue
        difference = find_difference(trained, 'the checkpoint', classes, 'the data')
        if difference and len(trained) == len(classes) and set(trained).isdisjoint(classes):
            # Such as words in the one and WordNet ids in the other.
            print_log(
                f'{difference}. Check that these are names of the same classes.',
                logger='current',
                level=logging.WARNING,
            )
        elif difference:
            raise CheckpointError(
                f'{difference}. Name the classes in metainfo.classes as in training; COCO '
                'annotation files must list their categories in this order too.'
            )
