"""Check that data sets, class folders and checkpoints number the classes alike."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from mmengine.config import Config

from mmevit.checkpoint.loader import find_dataset_meta
from mmevit.datasets.formats.files import SPLITS
from mmevit.utils.configs import default_scope
from mmevit.utils.errors import CheckpointError, ConfigError, shorten, warn

from .dataset_info import DatasetInfo, list_datasets

# A model with one of these takes its classes from text, or tracks only some of the data's.
OPEN_MODELS = ('language_model', 'text_encoder', 'tracker')


def check_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Raise ConfigError if two data sets number different classes or class folders alike.

    Of a split that the run will not use, a difference is only logged.
    """
    if accepts_any_classes(cfg):
        return
    seen: dict[str, tuple[Sequence, str]] = {}
    used = [split for split in SPLITS if split in splits]
    others = [split for split in SPLITS if used and split not in used]
    with default_scope(cfg):
        for dataset in list_datasets(cfg, used + others):
            for problem in compare_classes(dataset, seen):
                if dataset.split in used:
                    raise ConfigError(f'{problem}.')
                warn(f'{problem} before using the {dataset.split} data.')


def accepts_any_classes(cfg: Config) -> bool:
    """Whether the classes of the model may differ from those of the data."""
    return any(part in (cfg.get('model') or {}) for part in OPEN_MODELS)


def compare_classes(dataset: DatasetInfo, seen: dict[str, tuple[Sequence, str]]) -> Iterator[str]:
    """Yield how classes and folders differ from the first ones, which are added to ``seen``."""
    # The model gets these names as text.
    if dataset.cfg.get('return_classes'):
        return
    place = f'the {dataset.split} data {dataset.cfg.get("ann_file") or ""}'.strip()
    classes, folders = dataset.classes, dataset.folders
    if classes and folders:
        is_same = sorted(map(str, classes)) == sorted(folders)
        if len(classes) != len(folders) or (is_same and classes != folders):
            yield (
                f'{place[0].upper()}{place[1:]} has the class folders {shorten(folders)}, which '
                f'are numbered in this order, but metainfo.classes is {shorten(classes)}. List '
                'the classes in the order of the folders'
            )
    for advice, names in {
        'Give all data sets the same classes in the same order': classes or folders,
        'Give all data sets the same class folders, empty ones where there are no images': folders,
    }.items():
        if names:
            first = seen.setdefault(advice, (names, place))
            if difference := find_difference(*first, names, place):
                yield f'{difference}. {advice}'


def find_difference(expected: Sequence, place: str, names: Sequence, other: str) -> str | None:
    """Describe the first difference of two lists of classes, None if equal."""
    for number, (one, two) in enumerate(zip_longest(expected, names)):
        if one != two:
            one, two = ('missing' if name is None else repr(name) for name in (one, two))
            return f'Class {number} is {one} in {place}, but {two} in {other}'
    return None


def check_checkpoint_classes(checkpoint: dict, dataset: Any) -> None:
    """Raise CheckpointError if the classes of a checkpoint and a built data set differ."""
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
            warn(f'{difference}. Check that these are names of the same classes.')
        elif difference:
            raise CheckpointError(
                f'{difference}. List the classes in metainfo.classes as in training; COCO '
                'annotation files must list their categories in this order too.'
            )
