"""Check that the labels of classifiers and the segmentation maps of segmentors fit the model."""

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mmengine
import numpy as np
from mmengine.registry import DATASETS

from mmevit.datasets.faults import Faults
from mmevit.datasets.seg_maps import find_seg_map_faults
from mmevit.errors import ConfigError, one_line, shorten
from mmevit.utils.configs import as_list, find_step, is_remote, type_name

# So many take about a second; tools/check_dataset.py looks at all.
MAX_SEG_MAPS = 200


def check_labels(cfg, dataset: dict, split: str):
    """Check the labels of a data set: all lines of a list, or some of its segmentation maps.

    Args:
        cfg (Config): Config of any library, in whose scope this is called; only what mmpretrain and
            mmseg read is checked.
        dataset: Config of a data set; one on remote storage is not checked.
        split: What it is for.

    Raises:
        ConfigError: If an image or a map is missing, or a label is beyond the classes of the model.
    """
    if is_remote(dataset):
        return
    scope, model = cfg.get('default_scope'), cfg.get('model') or {}
    if scope == 'mmpretrain':
        check_class_labels(dataset, split, count_classes(model)[0])
    elif scope == 'mmseg' and model.get('decode_head'):
        check_seg_maps(dataset, split, *count_classes(model))


def count_classes(model: dict) -> tuple[int | None, int | None]:
    """Tell how many labels a classifier or a segmentor has, and which one is ignored.

    Args:
        model: Its config, or that of a wrapper for test-time augmentation.

    Returns:
        The number, None if the config does not state it, and the ignored label, None if none is.

    Example:
        >>> count_classes(dict(decode_head=dict(num_classes=19)))
        (19, 255)
    """
    model = model.get('module') or model
    if decode_head := model.get('decode_head'):
        head = as_list(decode_head)[-1]
        num_classes = head.get('num_classes')
        # A single output tells two labels apart.
        return num_classes and max(num_classes, 2), head.get('ignore_index', 255)
    head = model.get('head') or {}
    default = 1000 if type_name(head) == 'EfficientViTClsHead' else None
    return head.get('num_classes', default), None


def check_class_labels(dataset: dict, split: str, num_classes: int | None):
    """Check a list of images and labels, or the number of class folders.

    Raises:
        ConfigError: If a line has no label, or one beyond the classes, or its image is missing.
    """
    from mmengine.dataset import BaseDataset
    from mmpretrain.datasets import CustomDataset

    kind = dataset['type']
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    read = getattr(kind, 'load_data_list', None)
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefix = prefix.get('img_path') or '' if isinstance(prefix, dict) else prefix
    root = dataset.get('data_root') or ''
    folder, ann_file = Path(root, prefix), Path(root, dataset.get('ann_file') or '')
    if read is CustomDataset.load_data_list and dataset.get('with_label', True):
        if not dataset.get('ann_file'):
            check_number_of_folders(folder, num_classes)
            return
        entries = read_text_list(ann_file)
    elif read is BaseDataset.load_data_list:
        entries = read_data_list(ann_file)
    else:
        return
    if not entries:
        raise ConfigError(f'{ann_file} lists no images: write one in each line')
    if wrong := find_wrong_labels(entries, num_classes):
        raise ConfigError(
            f'{ann_file} has {len(wrong)} labels that are not among the {num_classes} classes of '
            f'model.head, from 0, such as {wrong[0]}: fix the labels or num_classes'
        )
    if missing := find_missing(os.path.join(folder, entry['img_path']) for entry in entries):
        raise ConfigError(
            f'{ann_file} names {len(missing)} of {len(entries)} images that are missing, such as '
            f'{missing[0]}: put the images into {folder}, or fix data_prefix'
        )


def check_number_of_folders(folder: Path, num_classes: int | None):
    """Check that there are no more class folders than classes."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if num_classes is not None and len(names) > num_classes:
        raise ConfigError(
            f'{folder} has {len(names)} class folders, {shorten(names)}, but model.head has '
            f'{num_classes} classes: make num_classes agree'
        )


def read_text_list(ann_file: Path) -> list[dict]:
    """Read a text file that has a path and a label in each line.

    Raises:
        ConfigError: If a line is another.
    """
    entries = []
    with open(ann_file, encoding='utf-8') as lines:
        for number, line in enumerate(lines, 1):
            name, _, label = line.strip().rpartition(' ')
            try:
                entries.append(dict(img_path=name, gt_label=int(label)))
            except ValueError:
                raise ConfigError(
                    f'Line {number} of {ann_file} is {line.strip()!r}: write a path, a space and '
                    'the number of the class'
                ) from None
    return entries


def read_data_list(ann_file: Path) -> list[dict]:
    """Read the images and labels of a file in OpenMMLab's layout.

    Raises:
        ConfigError: If it has another layout.
    """
    try:
        entries = mmengine.load(ann_file)['data_list']
        return [
            dict(img_path=entry['img_path'], gt_label=entry.get('gt_label', []))
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{ann_file} is not in OpenMMLab's layout ({one_line(error)}): write an object with "
            'metainfo and data_list, whose entries have img_path and gt_label'
        ) from error


def find_wrong_labels(entries: list[dict], num_classes: int | None) -> list[str]:
    """List the labels for which a classifier has no class, with their images.

    Args:
        entries: Each may have a ``gt_label``, one number or several, and an ``img_path``.
        num_classes: Number of classes, None for any.

    Example:
        >>> find_wrong_labels([dict(img_path='a.png', gt_label=3)], num_classes=3)
        ['3 of a.png']
    """
    highest = math.inf if num_classes is None else num_classes - 1
    return [
        f'{label} of {entry.get("img_path")}'
        for entry in entries
        for label in np.atleast_1d(entry.get('gt_label', []))
        if not 0 <= label <= highest
    ]


def find_missing(paths: Iterable[str]) -> list[str]:
    """Find the files that are missing, with one look at each folder."""
    names_by_folder = defaultdict(set)
    for path in paths:
        folder, name = os.path.split(path)
        names_by_folder[folder].add(name)
    missing = []
    for folder, names in names_by_folder.items():
        present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        missing += [os.path.join(folder, name) for name in sorted(names - present)]
    return missing


@contextlib.contextmanager
def refuse_empty_datasets(split):
    """Say so where a data set that is built in a block has no images.

    Args:
        split (str): What it is for.

    Raises:
        ConfigError: In the place of what mmengine raises.
    """
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


def check_seg_maps(dataset: dict, split: str, num_classes: int | None, ignored: int | None):
    """Check that all segmentation maps are there, and the pixels of some of them.

    Raises:
        ConfigError: If there are none, or a map is missing or does not fit its image or the model.
    """
    if 'seg_map_path' not in (dataset.get('data_prefix') or {}):
        return
    with refuse_empty_datasets(split):
        built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': False})
    entries = [built.get_data_info(index) for index in range(len(built))]
    entries = [entry for entry in entries if entry.get('seg_map_path')]
    if missing := find_missing(entry['seg_map_path'] for entry in entries):
        raise ConfigError(
            f'{len(missing)} of {len(entries)} segmentation maps of the {split} data are missing, '
            f'such as {missing[0]}: put them there, or fix data_prefix or seg_map_suffix'
        )
    chosen = entries[:: -(-len(entries) // MAX_SEG_MAPS)]
    load = find_step(dataset.get('pipeline') or [], 'LoadAnnotations') or {}
    backend = load.get('imdecode_backend', 'pillow')
    faults = Faults()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(
            lambda entry: find_seg_map_faults(entry, num_classes, ignored, backend), chosen
        ):
            for kind, example in found:
                faults.add(kind, example)
    if kinds := [*faults.of('fatal'), *faults.of('fault')]:
        raise ConfigError(
            f'Of {len(chosen)} segmentation maps of the {split} data that were checked: '
            f'{faults.describe(kinds)}. Fix them, or num_classes or reduce_zero_label; '
            'tools/check_dataset.py CONFIG checks all'
        )
