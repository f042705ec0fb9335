"""LabelMe: a JSON file for each image."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from mmevit.datasets.faults import Faults

from .files import Files
from .labels import NO_AREA, LabelledData, Shape, bounding_box, outline, sorted_classes
from .reading import read_label_files


class LabelMeShape(msgspec.Struct):
    """An object; ``mask`` is a PNG file that covers the box ``points``."""

    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = 'polygon'
    group_id: int | None = None
    mask: str | None = None


class LabelMeFile(msgspec.Struct):
    """A label file."""

    shapes: list[LabelMeShape]


def is_found(files: Files) -> bool:
    """Whether the first JSON file is of LabelMe."""
    for path in files.ending('.json')[:1]:
        try:
            msgspec.json.decode((files.root / path).read_bytes(), type=LabelMeFile)
        except msgspec.DecodeError:
            return False
        return True
    return False


def read(files: Files) -> LabelledData:
    """Read the data, with splits by folder."""
    faults = Faults()
    parse = partial(parse_json, faults=faults)
    images = read_label_files(files, files.ending('.json'), parse, faults)
    return LabelledData(files.root, sorted_classes(images), images, faults)


def parse_json(path: Path, size: tuple[int, int], faults: Faults) -> Iterator[Shape]:
    """Parse the objects of a file; polygons of the same label and group are one object."""
    content = msgspec.json.decode(path.read_bytes(), type=LabelMeFile)
    groups: defaultdict[Any, list[LabelMeShape]] = defaultdict(list)
    for index, shape in enumerate(content.shapes):
        alone = shape.group_id is None or shape.shape_type not in POLYGONS
        groups[index if alone else (shape.label, shape.group_id)].append(shape)
    for shapes in groups.values():
        kind, first = shapes[0].shape_type, shapes[0]
        if kind in POLYGONS:
            yield outline(first.label, [flatten(shape.points) for shape in shapes])
        elif kind == 'rectangle':
            yield Shape(first.label, bounding_box([flatten(first.points)]))
        elif kind == 'circle':
            yield outline(first.label, [draw_circle(*first.points)])
        elif kind == 'mask' and first.mask:
            yield read_mask(first, size)
        else:
            faults.add(NO_AREA, f'{path}: {first.label}, {kind}')


POLYGONS = ('polygon', None)


def flatten(points: Sequence[tuple[float, float]]) -> list[float]:
    """Join points to a list of x and y in turn."""
    return [value for point in points for value in point]


def draw_circle(
    centre: tuple[float, float], point: tuple[float, float], corners: int = 64
) -> list[float]:
    """Draw a circle, given by its centre and a point on it, as a polygon."""
    radius = math.dist(centre, point)
    angles = (2 * math.pi * index / corners for index in range(corners))
    return flatten(
        [(centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles]
    )


def read_mask(shape: LabelMeShape, size: tuple[int, int]) -> Shape:
    """Decode a mask to run lengths."""
    from pycocotools import mask as coco_masks

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape.mask or ''))))
    left, top = (round(value) for value in shape.points[0])
    height, width = pixels.shape
    whole = np.zeros(size, np.uint8, order='F')
    whole[top : top + height, left : left + width] = pixels > 0
    code: Any = coco_masks.encode(whole)
    x, y, w, h = coco_masks.toBbox(code).tolist()
    code['counts'] = code['counts'].decode('ascii')
    return Shape(shape.label, (x, y, x + w, y + h), code)
