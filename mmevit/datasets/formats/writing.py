"""Write labelled data as COCO annotation files, or as segmentation maps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write
from mmevit.utils.progress import show_progress

from .labels import LabelledData, LabelledImage, Shape
from .masks import decode_mask, measure_mask

# The value of pixels that count neither in training nor in evaluation.
IGNORED = 255


def write_coco(data: LabelledData, folder: str | Path) -> dict[str, Path]:
    """Write ``instances_SPLIT.json`` for each split, and return the paths by split.

    The file names in it are relative to the root of the data.

    Raises:
        ConfigError: If all objects are ignored.
    """
    if all(shape.is_ignored for shape in data.shapes):
        raise ConfigError(
            f'{data.root} has only objects marked as crowd or difficult, which are neither trained '
            'on nor evaluated. CVAT marks brush masks so: set iscrowd to 0, or use them for '
            'semantic segmentation.'
        )
    paths = {split: Path(folder, f'instances_{split}.json') for split in data.splits}
    for split, path in paths.items():
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(make_coco(data, split)))
    return paths


def make_coco(data: LabelledData, split: str) -> dict[str, Any]:
    """Make the content of an annotation file, with ids from 1."""
    category_ids = {name: number for number, name in enumerate(data.classes, start=1)}
    images, annotations = [], []
    for image_id, image in enumerate(data.splits[split], start=1):
        images.append(
            dict(id=image_id, file_name=image.path, width=image.width, height=image.height)
        )
        for shape in image.shapes:
            left, top, right, bottom = (round(side, 3) for side in shape.box)
            width, height = round(right - left, 3), round(bottom - top, 3)
            annotation = dict(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=category_ids[shape.label],
                bbox=[left, top, width, height],
                area=measure_area(shape, image),
                iscrowd=int(shape.is_ignored),
            )
            if shape.segmentation is not None:
                annotation['segmentation'] = shape.segmentation
            annotations.append(annotation)
    categories = [dict(id=number, name=name) for name, number in category_ids.items()]
    return dict(images=images, annotations=annotations, categories=categories)


def measure_area(shape: Shape, image: LabelledImage) -> float:
    """Measure the area of an object in pixels: of its mask, or of its box without one."""
    if shape.segmentation is not None:
        return measure_mask(shape.segmentation, (image.height, image.width))[0]
    left, top, right, bottom = shape.box
    return round((right - left) * (bottom - top), 3)


def write_seg_maps(
    data: LabelledData, folder: str | Path
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """Write the classes of all pixels to ``IMAGE_PATH.png``, and lists of the images.

    Objects become classes after the background; where they overlap, the smaller one is written.
    A crowd region has its class. Pixels without a class have the value 255.

    Returns:
        The names of the classes by value, and the paths of the lists by split, ``SPLIT.txt``.

    Raises:
        ConfigError: If an object has no mask, or there are more than 255 classes.
    """
    if not data.has_masks:
        raise ConfigError(
            f'{data.root} has objects without masks, such as boxes, but segmentation maps need the '
            'class of every pixel. Outline them too.'
        )
    background = () if data.is_semantic else ('background',)
    classes = tuple(dict.fromkeys((*background, *data.classes)))
    if len(classes) > IGNORED:
        raise ConfigError(f'{len(classes)} classes do not fit in a segmentation map of bytes.')
    for image in show_progress(data.images, 'Writing segmentation maps'):
        pixels = paint(image, classes, IGNORED if data.is_semantic else 0)
        with atomic_write(Path(folder, f'{image.path}.png')) as path:
            Image.fromarray(pixels).save(path, 'png')
    lists = {split: Path(folder, f'{split}.txt') for split in data.splits}
    for split, images in data.splits.items():
        with atomic_write(lists[split]) as path:
            path.write_text(''.join(f'{image.path}\n' for image in images), encoding='utf-8')
    return classes, lists


def paint(image: LabelledImage, classes: Sequence[str], unlabelled: int) -> np.ndarray:
    """Return the number of the class of each pixel of an image."""
    size = image.height, image.width
    pixels = np.full(size, unlabelled, np.uint8)
    masks = [(decode_mask(shape.segmentation, size), shape) for shape in image.shapes]
    for mask, shape in sorted(masks, key=lambda pair: -pair[0].sum()):
        pixels[mask] = classes.index(shape.label)
    return pixels
