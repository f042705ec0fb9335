"""Check COCO annotation files and the images that they list."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmevit.datasets.coco import CocoImages, parse_coco, read_coco
from mmevit.datasets.coco_faults import NOTHING_TO_LEARN, find_coco_faults
from mmevit.utils.configs import find_class, type_name
from mmevit.utils.errors import ConfigError, shorten

from .classes import find_difference, inherits_from, list_classes
from .missing import check_images


def check_coco(dataset: dict, ann_file: Path, folder: Path) -> str | None:
    """Check an annotation file, and warn of annotations that mmdet leaves out.

    Args:
        dataset: Config of a ``CocoDataset``.
        ann_file: Its annotation file.
        folder: The folder of its images.

    Returns:
        Why nothing can be learnt from it, None if something can.

    Raises:
        ConfigError: If mmdet would stop or confuse classes, or an image is missing.
    """
    classes = list_classes(dataset) or ()
    content = read_coco(ann_file, loads_masks(dataset))
    names = [category.name for category in content.categories]
    if not set(classes) & set(names):
        raise ConfigError(
            f'None of the categories of {ann_file} ({shorten(names)}) is among the classes of the '
            f'data set ({shorten(classes)}). Set dataset.metainfo.classes, and num_classes of the '
            'head to their number.'
        )
    faults = find_coco_faults(content, classes)
    if found := faults.of('fatal'):
        raise ConfigError(
            f'{ann_file} cannot be trained on or evaluated: {faults.describe(found)}. '
            'Run tools/check_dataset.py CONFIG to list all faults.'
        )
    if found := faults.of('fault'):
        print_log(
            f'{ann_file} has faults: {faults.describe(found)}. Run tools/check_dataset.py CONFIG '
            'to list them all.',
            logger='current',
            level=logging.WARNING,
        )
    check_images(ann_file, [image.file_name for image in content.images], folder)
    if not content.annotations:
        return f'{ann_file} has no annotations. Set ann_file to a file with annotations.'
    if NOTHING_TO_LEARN in faults.counts:
        return (
            f'{ann_file} cannot be trained on or evaluated: {faults.describe([NOTHING_TO_LEARN])}. '
            'Add annotations of the classes.'
        )
    return None


def check_coco_metric(
    metric: dict, datasets: Sequence[dict], data_files: Sequence[Path], split: str
) -> None:
    """Check that the annotation file of a ``CocoMetric`` fits the data.

    Args:
        metric: Config of the metric.
        datasets: Configs of the data sets.
        data_files: The annotation files of all data sets, empty if some are not known.
        split: ``'val'`` or ``'test'``.

    Raises:
        ConfigError: If it has other images, or classes that are missing or in another order.
    """
    ann_file = Path(metric['ann_file'])
    content = parse_coco(ann_file, CocoImages)
    if metric.get('sort_categories'):
        content.categories.sort(key=lambda category: category.id)  # pyright: ignore[reportArgumentType]
    for classes in filter(None, map(list_classes, datasets)):
        names = [category.name for category in content.categories if category.name in classes]
        place = f'the categories of {ann_file}, the annotation file of {split}_evaluator'
        if difference := find_difference(classes, 'metainfo.classes', names, place):
            raise ConfigError(
                f'{difference}. List every class in the categories of the file, in the order of '
                'metainfo.classes, even without annotations.'
            )
    if not data_files or any(map(ann_file.samefile, data_files)):
        return
    own = name_images(content)
    images = {}
    for path in data_files:
        images |= name_images(parse_coco(path, CocoImages))
    if differing := [number for number in own | images if own.get(number) != images.get(number)]:
        raise ConfigError(
            f'{split}_evaluator.ann_file, {ann_file}, and the {split} data have different images '
            f'for {len(differing)} ids, such as {differing[0]}. Set {split}_evaluator.ann_file to '
            f'the annotation file of the {split} data.'
        )


def name_images(content: CocoImages) -> dict:
    """Map the ids of the images to the names of their files, without folders."""
    return {image.id: os.path.basename(image.file_name) for image in content.images}


def reads_coco(dataset: dict) -> bool:
    """Whether a data set reads its annotation file as ``CocoDataset`` does."""
    cls: Any = find_class(DATASETS, dataset)
    return inherits_from(cls, 'mmdet', 'CocoDataset') and (
        cls.load_data_list.__qualname__ == 'CocoDataset.load_data_list'
        # CocoPanopticDataset has another layout and another API to read it.
        and cls.COCOAPI.__name__ == 'COCO'
    )


def loads_masks(dataset: dict) -> bool:
    """Whether the pipeline of a data set loads instance masks."""
    return any(
        type_name(step) == 'LoadAnnotations' and step.get('with_mask', False)
        for step in dataset.get('pipeline') or ()
    )
