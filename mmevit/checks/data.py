"""Check that the files of data sets and evaluators exist and fit each other."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from mmevit.datasets.coco import CocoImages, parse_coco, read_coco
from mmevit.datasets.coco_faults import NOTHING_TO_LEARN, find_coco_faults
from mmevit.utils.configs import as_list, default_scope, is_remote, type_name
from mmevit.utils.errors import ConfigError, shorten, warn

from .classes import find_difference
from .dataset_info import DatasetInfo, MissingFilesError, check_images, list_datasets
from .labels import check_labels

DIGITS_CONFIGS = dict(
    mmdet='configs/retinanet_evit_m4_digits.py',
    mmpretrain='configs/evit_m0_digits.py',
    mmseg='configs/semantic-fpn_evit_m4_digits.py',
)
SELF_DOWNLOADING = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


def check_data(cfg: Config, split: str) -> None:
    """Raise ConfigError if a file of the data sets or evaluators of a split is missing or wrong."""
    if cfg.get(f'{split}_dataloader') is None:
        return
    try:
        with default_scope(cfg):
            datasets = list(list_datasets(cfg, [split]))
            problems = []
            for dataset in datasets:
                problems.append(check_files(dataset))
                check_labels(cfg, dataset)
            # Some data sets may be unlabelled, as in semi-supervised training, but not all.
            if split != 'test' and problems and all(problems):
                raise ConfigError(problems[0])
            for evaluator in as_list(cfg.get(f'{split}_evaluator') or []):
                check_evaluator(evaluator, datasets, split)
    except MissingFilesError as error:
        if source := cfg.get('data_source'):
            raise ConfigError(f'{error} Download the data from {source}.') from error
        digits_config = DIGITS_CONFIGS.get(cfg.get('default_scope'), DIGITS_CONFIGS['mmdet'])
        raise ConfigError(
            f'{error} To try mmevit without data, run tools/prepare_digits.py and use '
            f'{digits_config}.'
        ) from error


def check_files(dataset: DatasetInfo) -> str | None:
    """Raise ConfigError if a file of a local data set is missing or not valid COCO.

    Returns why nothing can be learnt from it, None if something can or it is not known.
    """
    cfg, split = dataset.cfg, dataset.split
    is_downloaded = type_name(cfg) in SELF_DOWNLOADING and cfg.get('download', True)
    if dataset.is_remote or is_downloaded:
        return None
    classes = dataset.metainfo.get('classes')
    # mmengine only warns, and takes each letter for a class.
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ConfigError(
            f'metainfo.classes of the {split} data is {classes!r}, but this file does not exist. '
            "Correct the path, or write a tuple such as ('cat',) for a single class."
        )
    parts = [part for part in (cfg.get('ann_file'), *dataset.prefixes.values()) if part]
    paths = [Path(dataset.root, part) for part in parts or fixed_layout(cfg, dataset.root) or ['']]
    for path in paths:
        if not path.exists():
            raise MissingFilesError(
                f'The {split} data is incomplete: {path} is missing. Expected are '
                f'{" and ".join(map(str, paths))}.'
            )
    return check_coco(dataset) if dataset.reads_coco else None


def fixed_layout(dataset: dict, root: str) -> list[str]:
    """List the files in ``root`` of mmpretrain's data sets with a fixed layout."""
    split = dataset.get('split')
    part, labels = ('test', '_withlabels') if split == 'test' else ('train', '')
    cars = ['car_ims', 'cars_annos.mat']
    if not Path(root, cars[1]).exists():
        cars = [f'cars_{part}', f'devkit/cars_{part}_annos{labels}.mat']
    layouts = dict(
        ImageNet=[split] if split else [],
        StanfordCars=cars,
        Flowers102=['jpg', 'imagelabels.mat', 'setid.mat'],
        OxfordIIITPet=['images', f'annotations/{split or "trainval"}.txt'],
    )
    return layouts.get(type_name(dataset), [])


def check_coco(dataset: DatasetInfo) -> str | None:
    """Raise ConfigError if mmdet would stop or confuse classes, or an image is missing.

    Warns of annotations that mmdet leaves out, and returns why nothing can be learnt, if so.
    """
    ann_file, classes = dataset.ann_file, dataset.classes
    content = read_coco(ann_file, dataset.loads_masks)
    names = [category.name for category in content.categories]
    if numbers := [name for name in classes if not isinstance(name, str)]:
        raise ConfigError(
            f'metainfo.classes of the {dataset.split} data has {numbers[0]!r}, but the names of '
            'categories are strings. Write them in quotes in a config file; --cfg-options turns '
            '"1" into a number.'
        )
    if not set(classes) & set(names):
        raise ConfigError(
            f'None of the categories of {ann_file} ({shorten(names)}) is among the classes of the '
            f'data set ({shorten(classes)}). Set dataset.metainfo.classes, and num_classes of the '
            'head to their number.'
        )
    faults = find_coco_faults(content, classes, dataset.loads_only_polygons)
    if found := faults.describe(faults.of('fatal')):
        raise ConfigError(
            f'{ann_file} cannot be trained on or evaluated: {found}. '
            'Run tools/check_dataset.py CONFIG to list all faults.'
        )
    if found := faults.describe(faults.of('fault')):
        warn(f'{ann_file} has faults: {found}. Run tools/check_dataset.py CONFIG to list them all.')
    check_images(ann_file, [image.file_name for image in content.images], dataset.image_folder)
    if not content.annotations:
        return f'{ann_file} has no annotations. Set ann_file to a file with annotations.'
    if NOTHING_TO_LEARN in faults.counts:
        return (
            f'{ann_file} cannot be trained on or evaluated: {faults.describe([NOTHING_TO_LEARN])}. '
            'Add annotations of the classes.'
        )
    return None


def check_evaluator(evaluator: dict, datasets: Sequence[DatasetInfo], split: str) -> None:
    """Raise ConfigError if the annotation file of a metric is missing or differs from the data.

    For a ``CocoMetric`` the classes must be in the order of the data, and the images the same.
    """
    if type_name(evaluator) == 'FasterCocoMetric' and find_spec('faster_coco_eval') is None:
        raise ConfigError(
            f'{split}_evaluator is a FasterCocoMetric, but faster_coco_eval is not installed. '
            'Install faster-coco-eval, or use a CocoMetric.'
        )
    if not evaluator.get('ann_file') or is_remote(evaluator):
        return
    ann_file = Path(evaluator['ann_file'])
    if not ann_file.exists():
        raise MissingFilesError(f'{split}_evaluator.ann_file is missing: {ann_file}.')
    if type_name(evaluator) != 'CocoMetric':
        return
    content = parse_coco(ann_file, CocoImages)
    if evaluator.get('sort_categories'):
        content.categories.sort(key=lambda category: category.id)  # pyright: ignore[reportArgumentType]
    for classes in filter(None, (dataset.classes for dataset in datasets)):
        names = [category.name for category in content.categories if category.name in classes]
        place = f'the categories of {ann_file}, the annotation file of {split}_evaluator'
        if difference := find_difference(classes, 'metainfo.classes', names, place):
            raise ConfigError(
                f'{difference}. List every class in the categories of the file, in the order of '
                'metainfo.classes, even without annotations.'
            )
    files = [data.ann_file for data in datasets if data.reads_coco and not data.is_remote]
    # The images of other data sets are unknown.
    if len(files) < len(datasets) or any(map(ann_file.samefile, files)):
        return
    images = {}
    for path in files:
        images |= parse_coco(path, CocoImages).names_by_id
    own = content.names_by_id
    if differing := [number for number in own | images if own.get(number) != images.get(number)]:
        raise ConfigError(
            f'{split}_evaluator.ann_file, {ann_file}, and the {split} data have different images '
            f'for {len(differing)} ids, such as {differing[0]}. Set {split}_evaluator.ann_file to '
            f'the annotation file of the {split} data.'
        )
