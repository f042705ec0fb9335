"""Check that the files of data sets and evaluators exist and fit each other."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmevit.utils.configs import as_list, default_scope, find_datasets, is_remote, type_name
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


def check_data(cfg: Config, split: str) -> None:
    """Check the files of the data sets and the evaluators of a split.

    Args:
        cfg: The config.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ConfigError: If a file is missing, invalid, or does not fit the others.
    """
    dataloader = cfg.get(f'{split}_dataloader')
    if dataloader is None:
        return
    try:
        with default_scope(cfg):
            datasets = list(find_datasets(dataloader['dataset']))
            problems = []
            for dataset in datasets:
                problems.append(check_dataset(dataset, split))
                check_labels(cfg, dataset, split)
            # Some data sets may be unlabelled, as in semi-supervised training, but not all.
            if split != 'test' and problems and all(problems):
                raise ConfigError(problems[0])
            for evaluator in as_list(cfg.get(f'{split}_evaluator') or []):
                check_evaluator(evaluator, datasets, split)
    except MissingFilesError as error:
        digits_config = DIGITS_CONFIGS.get(cfg.get('default_scope'), DIGITS_CONFIGS['mmdet'])
        raise ConfigError(
            f'{error} To try mmevit without data, run tools/prepare_digits.py and use '
            f'{digits_config}.'
        ) from error


def check_dataset(dataset: dict, split: str) -> str | None:
    """Check that the files of a local data set exist, and check COCO files.

    Args:
        dataset: Config of a data set.
        split: Its split.

    Returns:
        Why nothing can be learnt from it, None if something can or it is not known.

    Raises:
        ConfigError: If a file is missing or invalid.
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
            f'metainfo.classes of the {split} data is {classes!r}, but this file does not exist. '
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
                f'The {split} data is incomplete: {path} is missing. Expected are '
                f'{" and ".join(map(str, paths))}.'
            )
    if ann_file and reads_coco(dataset):
        return check_coco(dataset, Path(root, ann_file), Path(root, prefixes.get('img', '')))
    return None


def fixed_layout(dataset: dict, root: str) -> list[str]:
    """List the files in ``root`` of mmpretrain's data sets with a fixed layout.

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


def check_evaluator(evaluator: dict, datasets: Sequence[dict], split: str) -> None:
    """Check that the annotation file of an evaluator exists and fits the data.

    Args:
        evaluator: Config of a metric.
        datasets: Configs of the data sets of the split.
        split: The split.

    Raises:
        ConfigError: If it is missing or does not fit.
    """
    ann_file = evaluator.get('ann_file') or ''
    is_local = ann_file and not is_remote(evaluator)
    if is_local and not os.path.exists(ann_file):
        raise MissingFilesError(f'{split}_evaluator.ann_file is missing: {ann_file}.')
    if is_local and type_name(evaluator) == 'CocoMetric':
        local = [dataset for dataset in datasets if reads_coco(dataset) and not is_remote(dataset)]
        files = [Path(dataset.get('data_root') or '', dataset['ann_file']) for dataset in local]
        is_known = len(local) == len(datasets)
        check_coco_metric(evaluator, datasets, files if is_known else [], split)
