"""Check that the files of the data sets and the evaluators are there."""

import os
from pathlib import Path

from mmengine.registry import DefaultScope

from mmevit.utils.configs import as_list, find_datasets, is_remote, type_name
from mmevit.utils.errors import ConfigError

from .coco import check_coco, check_coco_metric, reads_coco
from .labels import check_labels
from .missing import MissingFilesError

DIGITS_CONFIGS = dict(
    mmdet='configs/retinanet_evit_m4_digits.py',
    mmpretrain='configs/evit_m0_digits.py',
    mmseg='configs/semantic-fpn_evit_m4_digits.py',
)
SELF_DOWNLOADING = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


def check_data(cfg, split):
    """Check the files that the data sets and the evaluators of one split need.

    Args:
        cfg (Config): The config.
        split (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ConfigError: If something is missing or does not fit.
    """
    dataloader = cfg.get(f'{split}_dataloader')
    if dataloader is None:
        return
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
            datasets = list(find_datasets(dataloader['dataset']))
            reasons = []
            for dataset in datasets:
                reasons.append(check_dataset(dataset, split))
                check_labels(cfg, dataset, split)
            # One part may have none, as the unlabelled images of semi-supervised training.
            if split != 'test' and reasons and all(reasons):
                raise ConfigError(reasons[0])
            for evaluator in as_list(cfg.get(f'{split}_evaluator') or []):
                check_evaluator(evaluator, datasets, split)
    except MissingFilesError as error:
        digits_config = DIGITS_CONFIGS.get(cfg.get('default_scope'), DIGITS_CONFIGS['mmdet'])
        raise ConfigError(
            f'{error}; to try without data, run tools/prepare_digits.py and use {digits_config}.'
        ) from error


def check_dataset(dataset, split):
    """Check that the files of a data set on a local disk are there and that COCO files parse.

    Args:
        dataset (dict): Config of a data set.
        split (str): What it is for.

    Returns:
        str | None: Why nothing can be learnt from it, None if something can or it is not known.

    Raises:
        ConfigError: If a file is missing or is not what its name says.
    """
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    is_downloaded = type_name(dataset) in SELF_DOWNLOADING and dataset.get('download', True)
    if is_remote(dataset) or is_downloaded:
        return None
    classes = (dataset.get('metainfo') or {}).get('classes')
    # mmengine only warns, and takes each letter for a class.
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ConfigError(
            f'metainfo.classes of the {split} data is {classes!r}, but there is no such file. '
            "Correct the path, or write a tuple such as ('cat',) for a single class."
        )
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img=prefixes)
    parts = [part for part in (ann_file, *prefixes.values()) if part] or fixed_layout(dataset, root)
    paths = [Path(root, part) for part in parts or ['']]
    for path in paths:
        if not path.exists():
            raise MissingFilesError(
                f'The {split} data is incomplete, {path} is missing: expected are '
                f'{" and ".join(map(str, paths))}'
            )
    if ann_file and reads_coco(dataset):
        return check_coco(dataset, Path(root, ann_file), Path(root, prefixes.get('img', '')))
    return None


def fixed_layout(dataset, root):
    """List what mmpretrain's data sets of a fixed layout read.

    Args:
        dataset (dict): Config of a data set.
        root (str): Its folder.

    Returns:
        list[str]: Files and folders in ``root``; empty if the data set is another one.

    Example:
        >>> fixed_layout(dict(type='ImageNet', split='val'), 'data/imagenet')
        ['val']
    """
    split = dataset.get('split')
    cars = ['car_ims', 'cars_annos.mat']
    if not Path(root, cars[1]).exists():
        part, labels = ('test', '_withlabels') if split == 'test' else ('train', '')
        cars = [f'cars_{part}', f'devkit/cars_{part}_annos{labels}.mat']
    layouts = dict(
        ImageNet=[split] if split else [],
        StanfordCars=cars,
        Flowers102=['jpg', 'imagelabels.mat', 'setid.mat'],
        OxfordIIITPet=['images', f'annotations/{split or "trainval"}.txt'],
    )
    return layouts.get(type_name(dataset), [])


def check_evaluator(evaluator, datasets, split):
    """Check that an evaluator's own annotation file, if it has one, is there and fits the data.

    Args:
        evaluator (dict): Config of a metric.
        datasets (list[dict]): Configs of the data sets that it measures on.
        split (str): What it is for.

    Raises:
        ConfigError: If it is missing or does not fit.
    """
    ann_file = evaluator.get('ann_file') or ''
    is_local = ann_file and not is_remote(evaluator)
    if is_local and not os.path.exists(ann_file):
        raise MissingFilesError(f'{split}_evaluator.ann_file, {ann_file}, is missing')
    if is_local and type_name(evaluator) == 'CocoMetric':
        local = [dataset for dataset in datasets if reads_coco(dataset) and not is_remote(dataset)]
        files = [Path(dataset.get('data_root') or '', dataset['ann_file']) for dataset in local]
        is_known = len(local) == len(datasets)
        check_coco_metric(evaluator, datasets, files if is_known else [], split)
