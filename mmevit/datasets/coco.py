"""Read the fields of COCO annotation files that mmdet uses."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mmevit.utils.errors import ConfigError

T = TypeVar('T')
Id = int | float | str


class Image(msgspec.Struct, gc=False):
    """An entry of ``images``."""

    id: Id
    file_name: str
    height: float
    width: float

    @property
    def is_empty(self) -> bool:
        """Whether a side is 0, negative or NaN."""
        return not (self.height > 0 and self.width > 0)


class Category(msgspec.Struct, gc=False):
    """An entry of ``categories``."""

    id: Id | None
    name: int | float | str


class Annotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``; the box is left, top, width and height in pixels.

    mmdet does not read the box and the area of an ignored annotation.
    """

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, ...] | None = None
    area: float | None = None
    iscrowd: Any = 0
    ignore: Any = 0


class Polygon(msgspec.Struct, array_like=True, gc=False):
    """A polygon of a mask, without its coordinates."""


class RunLengths(msgspec.Struct, gc=False):
    """A run-length encoded mask, of which only height and width are read."""

    size: Any = None


class MaskAnnotation(Annotation, gc=False):
    """An annotation with its mask."""

    segmentation: RunLengths | list[Polygon] | None = None


class CocoImages(msgspec.Struct):
    """The content of an annotation file without annotations."""

    images: list[Image]
    categories: list[Category]

    @property
    def names_by_id(self) -> dict[Id, str]:
        """The file names of the images, without folders, by id."""
        return {image.id: os.path.basename(image.file_name) for image in self.images}


class CocoFile(CocoImages):
    """The content of an annotation file for boxes."""

    annotations: list[Annotation] | None = None


class CocoMaskFile(CocoFile):
    """The content of an annotation file for masks."""

    annotations: list[MaskAnnotation] | None = None


def read_coco(ann_file: Path, with_masks: bool) -> CocoFile:
    """Read a COCO annotation file, which may have no annotations; raise ConfigError if invalid."""
    content = parse_coco(ann_file, CocoMaskFile if with_masks else CocoFile)
    for part in ('images', 'categories'):
        if not getattr(content, part):
            raise ConfigError(
                f'{ann_file} has no {part}. A COCO annotation file needs the lists images, '
                'annotations and categories.'
            )
    return content


def parse_coco(ann_file: Path, layout: type[T]) -> T:
    """Parse a COCO annotation file into one of the classes above, raise ConfigError if invalid."""
    try:
        return parse_json(ann_file, layout)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f'{ann_file} is not a valid COCO annotation file: {error}. Correct or replace it.'
        ) from error
    except ValueError as error:
        raise ConfigError(
            f'{ann_file} is not valid JSON ({error}). Copy or download it again.'
        ) from error


def parse_json(path: Path, layout: type[T]) -> T:
    """Parse a JSON file, with NaN and infinite numbers as mmdet does."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=layout)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(path.read_text()), type=layout)
