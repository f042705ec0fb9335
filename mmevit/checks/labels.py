"""Check that labels and segmentation maps fit the model."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmevit.datasets.faults import Faults
from mmevit.datasets.image_faults import find_seg_map_faults
from mmevit.datasets.lists import read_data_list, read_text_list, reads_data_list
from mmevit.utils.configs import find_step
from mmevit.utils.errors import ConfigError

from .class_counts import count_classes
from .dataset_info import DatasetInfo, MissingFilesError, check_images, find_missing

# As many as take about a second; tools/check_dataset.py checks all.
MAX_SEG_MAPS = 200


def check_labels(cfg: Config, dataset: DatasetInfo) -> None:
    """Check all labels of a local data set of mmpretrain, or some maps of one of mmsegmentation.

    Must be called in the scope of the config.
    """
    scope, model = cfg.get('default_scope'), cfg.get('model') or {}
    if scope == 'mmpretrain' and not dataset.is_remote:
        check_class_labels(dataset, count_classes(model)[0])
    elif scope == 'mmseg' and model.get('decode_head') and not dataset.is_remote:
        check_seg_maps(dataset, *count_classes(model))


def check_class_labels(dataset: DatasetInfo, num_classes: int | None) -> None:
    """Raise ConfigError if a line of a list has no or an invalid label, or its image is missing."""
    from mmpretrain.datasets import CustomDataset

    if reads_data_list(dataset.type):
        built = dataset.build(lazy_init=True)
        paths, labels = read_data_list(Path(built.ann_file))
    elif getattr(dataset.type, 'load_data_list', None) is CustomDataset.load_data_list:
        built = dataset.unread
        # Other checks count and compare class folders.
        if not built.ann_file:
            return
        paths, labels = read_text_list(Path(built.ann_file), built.with_label)
    else:
        return
    ann_file, folder = built.ann_file, built.data_prefix.get('img_path') or ''
    if not paths:
        raise ConfigError(f'{ann_file} lists no images. Write one per line.')
    if wrong := labels and find_wrong_labels(paths, labels, num_classes):
        raise ConfigError(
            f'{ann_file} has {len(wrong)} labels that are not among the {num_classes} classes of '
            f'model.head, such as {wrong[0]}. Number the labels from 0, or correct num_classes.'
        )
    check_images(ann_file, paths, folder)


def find_wrong_labels(
    paths: Sequence[str], labels: Sequence[int | Sequence[int]], num_classes: int | None
) -> list[str]:
    """List the labels that are not below ``num_classes``, if that is known, with their images.

    Example:
        >>> find_wrong_labels(['a.png', 'b.png'], [1, [0, 3]], num_classes=3)
        ['3 of b.png']
    """
    highest = math.inf if num_classes is None else num_classes - 1
    pairs = zip(paths, labels, strict=True)
    if set(map(type, labels)) == {int}:  # fast for a million of them
        numbers = np.array(labels)
        wrong = np.flatnonzero((numbers < 0) | (numbers > highest))
        pairs = [(paths[index], labels[index]) for index in wrong]
    return [
        f'{label!r} of {path}'
        for path, several in pairs
        for label in (several if isinstance(several, (list, tuple)) else [several])
        if not (isinstance(label, int) and 0 <= label <= highest)
    ]


@contextlib.contextmanager
def refuse_empty_datasets(split: str) -> Iterator[None]:
    """Raise ConfigError if a data set that is built in the block is empty."""
    try:
        yield
    except ValueError as error:
        if 'need at least one array to concatenate' not in str(error):
            raise
        raise ConfigError(
            f'The {split} data set has no images, or filter_cfg removes all of them. Check '
            'ann_file, data_prefix, file suffixes and metainfo.classes, and min_size and '
            'filter_empty_gt of filter_cfg.'
        ) from error


def check_seg_maps(dataset: DatasetInfo, num_classes: int | None, ignored: int | None) -> None:
    """Raise ConfigError if a map is missing, or one of some does not fit its image or the model."""
    split = dataset.split
    if 'seg_map_path' not in dataset.prefixes:
        return
    with refuse_empty_datasets(split):
        built = dataset.build()
    entries = [built.get_data_info(index) for index in range(len(built))]
    entries = [entry for entry in entries if entry.get('seg_map_path')]
    if missing := find_missing([entry['seg_map_path'] for entry in entries]):
        raise MissingFilesError(
            f'{len(missing)} of {len(entries)} segmentation maps of the {split} data are missing, '
            f'such as {missing[0]}. Add them, or correct data_prefix or seg_map_suffix.'
        )
    load = find_step(dataset.cfg.get('pipeline') or [], 'LoadAnnotations')
    # Another transform may read files other than images.
    if load is None:
        return
    reduces = load.get('reduce_zero_label')
    if reduces not in (None, built.reduce_zero_label):
        raise ConfigError(
            f'LoadAnnotations of the {split} data has reduce_zero_label={reduces}, but the data '
            f'set has reduce_zero_label={built.reduce_zero_label}. Set it in the data set only.'
        )
    backend = load.get('imdecode_backend', 'pillow')
    chosen = entries[:: -(-len(entries) // MAX_SEG_MAPS) or 1]
    check = partial(find_seg_map_faults, num_classes=num_classes, ignored=ignored, backend=backend)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = Faults(chain.from_iterable(pool.map(check, chosen)))
    if found := faults.describe(faults.of('fatal', 'fault')):
        raise ConfigError(
            f'Of {len(chosen)} segmentation maps of the {split} data that were checked: '
            f'{found}. Correct them, or num_classes or reduce_zero_label. '
            'Run tools/check_dataset.py CONFIG to check all.'
        )
