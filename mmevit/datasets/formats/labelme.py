"""LabelMe: a JSON file for each image."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from mmevit.datasets.faults import Faults

from .files import Files
from .labels import (
    NO_AREA,
    LabelledData,
    Shape,
    Size,
    bounding_box,
    check_size,
    outline,
    sorted_classes,
)
from .masks import encode_pixels, measure_mask
from .reading import read_label_files


class LabelMeShape(msgspec.Struct):
    """An object; ``mask`` is a PNG file that covers the box ``points``."""

    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = 'polygon'
    group_id: int | None = None
    mask: str | None = None


class LabelMeFile(msgspec.Struct, rename='camel'):
    """A label file."""

    shapes: list[LabelMeShape]
    image_height: float | None = None
    image_width: float | None = None


class Parts(msgspec.Struct):
    """The list by which label files are recognized."""

    shapes: list[msgspec.Raw]


# Oriented boxes have four corners; those of X-AnyLabeling are named rotation.
POLYGONS = ('polygon', 'oriented_rectangle', 'rotation', None)


def find(files: Files) -> list[PurePosixPath]:
    """List the JSON files if one is of LabelMe, those that have an image first."""
    paths = sorted(files.ending('.json'), key=files.has_image, reverse=True)
    return paths if any(is_label_file(files.root / path) for path in paths) else []


def is_label_file(path: Path) -> bool:
    """Whether a JSON file is of LabelMe."""
    try:
        msgspec.json.decode(path.read_bytes(), type=Parts)
    except msgspec.DecodeError:
        return False
    return True


def read(files: Files, label_files: Sequence[PurePosixPath]) -> LabelledData:
    """Read the data, with splits by folder."""
    faults = Faults()
    images = read_label_files(files, label_files, partial(parse_json, faults=faults), faults)
    return LabelledData(files.root, sorted_classes(images), images, faults)


def parse_json(content: bytes, size: Size, place: str, faults: Faults) -> Iterator[Shape]:
    """Parse the objects of a file; polygons of the same label and group are one object."""
    labels = msgspec.json.decode(content, type=LabelMeFile)
    check_size((labels.image_height, labels.image_width), size, place, faults)
    groups: defaultdict[Any, list[LabelMeShape]] = defaultdict(list)
    for index, shape in enumerate(labels.shapes):
        is_single = shape.group_id is None or shape.shape_type not in POLYGONS
        groups[index if is_single else (shape.label, shape.group_id)].append(shape)
    for shapes in groups.values():
        first = shapes[0]
        if first.shape_type in POLYGONS:
            yield outline(first.label, [[*chain.from_iterable(shape.points)] for shape in shapes])
        elif first.shape_type == 'rectangle':
            yield Shape(first.label, bounding_box([[*chain.from_iterable(first.points)]]))
        elif first.shape_type == 'circle':
            centre, point = first.points
            yield outline(first.label, [draw_circle(centre, point)])
        elif first.shape_type == 'mask' and first.mask:
            yield read_mask(first, size)
        else:
            faults.add(NO_AREA, f'{place}: {first.label}, {first.shape_type}')


def draw_circle(centre: tuple[float, float], point: tuple[float, float]) -> list[float]:
    """Draw a circle, given by its centre and a point on it, as a polygon."""
    corners = 64
    radius = math.dist(centre, point)
    angles = (2 * math.pi * index / corners for index in range(corners))
    points = ((centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles)
    return [*chain.from_iterable(points)]


def read_mask(shape: LabelMeShape, size: Size) -> Shape:
    """Decode a mask to run lengths."""
    with Image.open(io.BytesIO(base64.b64decode(shape.mask or ''))) as image:
        pixels = np.asarray(image) > 0
    left, top = (round(value) for value in shape.points[0])
    height, width = pixels.shape
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = pixels
    code = encode_pixels(mask)
    return Shape(shape.label, measure_mask(code, size)[1], code)
