"""Check that data sets, class folders and checkpoints number the classes alike."""

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmevit.checkpoint.loader import find_dataset_meta
from mmevit.datasets.lists import read_metainfo, reads_data_list
from mmevit.utils.configs import default_scope, find_class, find_datasets, is_remote
from mmevit.utils.errors import CheckpointError, ConfigError, shorten

SPLITS = ('train', 'val', 'test')
# A model with one of these takes its classes from text, or tracks only some of the data's.
OPEN_MODELS = ('language_model', 'text_encoder', 'tracker')


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Compare classes and class folders of all data sets by name and order.

    Args:
        cfg: The config.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run will use. For the others a
            difference is only logged.

    Raises:
        ConfigError: If two data sets that will be used number different classes alike.
    """
    if accepts_any_classes(cfg):
        return
    seen: dict[str, tuple[Sequence, str]] = {}
    used = [split for split in SPLITS if split in splits]
    others = [split for split in SPLITS if used and split not in used]
    with default_scope(cfg):
        for split in used + others:
            dataloader = cfg.get(f'{split}_dataloader')
            for dataset in find_datasets(dataloader['dataset']) if dataloader else ():
                for problem in compare_classes(dataset, split, seen):
                    if split in used:
                        raise ConfigError(f'{problem}.')
                    message = f'{problem} before using the {split} data.'
                    print_log(message, logger='current', level=logging.WARNING)


def accepts_any_classes(cfg: Config) -> bool:
    """Whether the classes of the model may differ from those of the data."""
    return any(part in (cfg.get('model') or {}) for part in OPEN_MODELS)


ADVICE = dict(
    classes='Give all data sets the same classes in the same order',
    folders='Give all data sets the same class folders, empty ones where there are no images',
)


def compare_classes(
    dataset: dict, split: str, seen: dict[str, tuple[Sequence, str]]
) -> Iterator[str]:
    """Yield how classes and class folders differ from those seen before.

    Args:
        dataset: Its config.
        split: Its split.
        seen: The first classes and class folders, to which those of the data set are added.
    """
    # The model gets these names as text.
    if dataset.get('return_classes'):
        return
    place = f'the {split} data {dataset.get("ann_file") or ""}'.strip()
    classes, folders = list_classes(dataset), list_class_folders(dataset)
    if classes and folders:
        is_same = sorted(map(str, classes)) == sorted(folders)
        if len(classes) != len(folders) or is_same and list(classes) != list(folders):
            yield (
                f'{place[0].upper()}{place[1:]} has the class folders {shorten(folders)}, which '
                f'are numbered in this order, but metainfo.classes is {shorten(classes)}. List '
                'the classes in the order of the folders'
            )
    for source, names in dict(classes=classes or folders, folders=folders).items():
        if names:
            first = seen.setdefault(source, (names, place))
            if difference := find_difference(*first, names, place):
                yield f'{difference}. {ADVICE[source]}'


def list_classes(dataset: dict) -> tuple[str, ...] | None:
    """List the classes of a data set from its config, type or annotation file.

    None if there are none or their file is missing.
    """
    classes, cls = stated_classes(dataset), find_class(DATASETS, dataset)
    if classes is None:
        classes = getattr(cls, 'METAINFO', {}).get('classes')
    if classes is None and reads_data_list(cls) and not is_remote(dataset):
        ann_file = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
        classes = read_metainfo(ann_file).get('classes')
    if isinstance(classes, str):
        classes = list_from_file(classes) if os.path.isfile(classes) else None
    return tuple(classes) if classes is not None else None


def stated_classes(dataset: dict) -> Sequence[str] | str | None:
    """Return the classes in a config, or the file that lists them, or None."""
    return (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')


def list_class_folders(dataset: dict) -> tuple[str, ...] | None:
    """List the class folders of a data set of mmpretrain as it numbers them.

    None if its classes are not folders on this disk.
    """
    built = build_unread(dataset)
    if (
        built is None
        or built.ann_file
        or not built.with_label
        or not os.path.isdir(built.img_prefix)
    ):
        return None
    from mmpretrain.datasets.custom import find_folders

    return tuple(find_folders(built.img_prefix)[0])


def build_unread(dataset: dict) -> Any:
    """Build a ``CustomDataset`` of mmpretrain without reading its files.

    Its ``ann_file``, ``img_prefix`` and ``with_label`` are resolved then. None if it is of another
    type, or remote.
    """
    cls = find_class(DATASETS, dataset)
    if is_remote(dataset) or not inherits_from(cls, 'mmpretrain', 'CustomDataset'):
        return None
    return DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})


def inherits_from(cls: type | None, library: str, name: str) -> bool:
    """Whether a class inherits from one of a library, without importing it."""
    return any(
        base.__name__ == name and base.__module__.partition('.')[0] == library
        for base in getattr(cls, '__mro__', ())
    )


def find_difference(expected: Sequence, place: str, names: Sequence, other: str) -> str | None:
    """Describe the first difference of two lists of classes, None if equal."""
    for number, (one, two) in enumerate(zip_longest(expected, names)):
        if one != two:
            one, two = ('missing' if name is None else repr(name) for name in (one, two))
            return f'Class {number} is {one} in {place}, but {two} in {other}'
    return None


def check_checkpoint_classes(checkpoint: dict, dataset: Any) -> None:
    """Compare the classes of a checkpoint with those of a built data set.

    Raises:
        CheckpointError: If they differ.
    """
    trained = find_dataset_meta(checkpoint.get('meta')).get('classes') or ()
    trained = (trained,) if isinstance(trained, str) else trained
    metas = getattr(dataset, 'metainfo', ())
    # mmdet has a list for a concatenation of data sets that differ, even if only in their palette.
    for meta in [metas] if isinstance(metas, dict) else metas:
        classes = meta.get('classes')
        if not trained or not classes or getattr(dataset, 'return_classes', False):
            continue
        difference = find_difference(trained, 'the checkpoint', classes, 'the data')
        if difference and len(trained) == len(classes) and set(trained).isdisjoint(classes):
            # Such as words and WordNet ids.
            print_log(
                f'{difference}. Check that these are names of the same classes.',
                logger='current',
                level=logging.WARNING,
            )
        elif difference:
            raise CheckpointError(
                f'{difference}. List the classes in metainfo.classes as in training; COCO '
                'annotation files must list their categories in this order too.'
            )
