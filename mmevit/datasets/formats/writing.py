"""Write labelled data as COCO annotation files."""

import json
from pathlib import Path
from typing import Any

from mmevit.utils.files import atomic_write

from .labels import LabelledData, LabelledImage, Shape
from .masks import measure_mask


def write_coco(data: LabelledData, folder: str | Path) -> dict[str, Path]:
    """Write ``instances_SPLIT.json`` for each split, and return the paths by split.

    The file names in it are relative to the root of the data.
    """
    written = {}
    for split in data.splits:
        written[split] = Path(folder, f'instances_{split}.json')
        with atomic_write(written[split]) as path:
            path.write_text(json.dumps(make_coco(data, split)))
    return written


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
