"""COCO JSON in its usual layouts, also one ``_annotations.coco.json`` for each split."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from mmevit.datasets.coco import Annotation, Category, Id, parse_coco
from mmevit.datasets.coco_faults import UNKNOWN_CATEGORY, UNKNOWN_IMAGE
from mmevit.datasets.faults import Faults
from mmevit.datasets.image_faults import image_size
from mmevit.utils.errors import ConfigError
from mmevit.utils.progress import show_progress

from .files import Files, split_of
from .labels import (
    BACKGROUND,
    LISTED_TWICE,
    MISSING_IMAGE,
    NO_LABELS,
    UNREADABLE_IMAGE,
    LabelledData,
    LabelledImage,
    Shape,
    Size,
    bounding_box,
    check_size,
    repair_shapes,
)
from .masks import measure_mask
from .matching import Reference, assign_images


class ImageEntry(msgspec.Struct):
    """An image, of which some tools do not write the size."""

    id: Id
    file_name: str
    height: float | None = None
    width: float | None = None


class FullCategory(Category, gc=False):
    """A category with the one above it."""

    supercategory: Any = None


class RunLengths(msgspec.Struct):
    """A run-length encoded mask, compressed or not."""

    size: tuple[int, int]
    counts: str | list[int]


class FullAnnotation(Annotation):
    """An annotation with its mask."""

    segmentation: RunLengths | list[list[float]] | None = None


class FullCocoFile(msgspec.Struct):
    """The content of an annotation file."""

    images: list[ImageEntry]
    categories: list[FullCategory]
    annotations: list[FullAnnotation]


class Parts(msgspec.Struct):
    """The lists by which annotation files are recognized."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


# The beginnings of the names of COCO's files for other tasks.
OTHER_TASKS = ('person_keypoints_', 'panoptic_', 'stuff_')


def find(files: Files) -> list[PurePosixPath]:
    """List the annotation files, without those of COCO's other tasks if there are others.

    JSON files with the names of images are of other formats.
    """
    paths = [path for path in files.ending('.json') if not files.has_image(path)]
    found = [path for path in paths if is_annotation_file(files.root / path)]
    return [path for path in found if not path.name.startswith(OTHER_TASKS)] or found


def is_annotation_file(path: Path) -> bool:
    """Whether a JSON file, which may be truncated, has images, categories and annotations."""
    content = path.read_bytes()
    try:
        return bool(msgspec.json.decode(content, type=Parts).annotations)
    except msgspec.ValidationError:
        return False
    # Also for NaN, which msgspec does not accept.
    except msgspec.DecodeError:
        return re.search(rb'"(images|categories|annotations)"\s*:\s*\[', content) is not None


def read(files: Files, label_files: Sequence[PurePosixPath]) -> LabelledData:
    """Read the data, with splits by the names of the annotation files, else by their folders."""
    faults = Faults()
    classes: dict[str, None] = {}
    splits: defaultdict[str, dict[str, LabelledImage]] = defaultdict(dict)
    listed = set()
    for path in label_files:
        content = parse_coco(files.root / path, FullCocoFile)
        check_ids(files.root / path, content)
        classes |= dict.fromkeys(choose_names(content).values())
        split = split_of(path.stem, *path.parts[-2::-1])
        for image_path, image in read_images(files, path, split, content, faults):
            listed.add(image_path)
            if image is not None and splits[split].setdefault(image.path, image) is not image:
                faults.add(LISTED_TWICE, f'{path}: {image.path}')
    if len(splits) > 1 and (others := splits.pop('', None)):
        raise ConfigError(
            f'{files.root} has annotation files of splits, and others with {len(others)} images. '
            'Name them train, val or test too, or remove them.'
        )
    faults.add_all((NO_LABELS, path) for path in files.images if path not in listed)
    images = {split: list(images.values()) for split, images in splits.items()}
    return LabelledData(files.root, tuple(classes), images, faults)


def check_ids(path: Path, content: FullCocoFile) -> None:
    """Raise ConfigError if different images or categories have the same id."""
    for what, entries in (('images', content.images), ('categories', content.categories)):
        known = {}
        for entry in entries:
            if known.setdefault(entry.id, entry) != entry:
                raise ConfigError(
                    f'{path} has several {what} with the id {entry.id}. Give each an id of its own.'
                )


def choose_names(content: FullCocoFile) -> dict[Id | None, str]:
    """Return the names of the categories by id, without an unused one above the others.

    Exports of Roboflow have such a category, which is not a class.
    """
    used = {annotation.category_id for annotation in content.annotations}
    above = {
        category.supercategory
        for category in content.categories
        if category.supercategory != category.name
    }
    return {
        category.id: str(category.name)
        for category in content.categories
        if category.id in used or category.name not in above
    }


def read_images(
    files: Files, path: PurePosixPath, split: str, content: FullCocoFile, faults: Faults
) -> Iterator[tuple[PurePosixPath, LabelledImage | None]]:
    """Find the images of an annotation file, and their objects; None for unreadable images."""
    names = choose_names(content)
    annotations: defaultdict[Id, list[FullAnnotation]] = defaultdict(list)
    for annotation in content.annotations:
        annotations[annotation.image_id].append(annotation)
    ids = {entry.id for entry in content.images}
    faults.add_all(
        (UNKNOWN_IMAGE, f'{path}: annotation {annotation.id}')
        for annotation in content.annotations
        if annotation.image_id not in ids
    )
    entries: dict[str, ImageEntry] = {}
    for entry in content.images:
        if entries.setdefault(entry.file_name, entry).id != entry.id:
            faults.add(LISTED_TWICE, f'{path}: {entry.file_name}')
    listed = list(entries.values())
    references = [Reference(name, path) for name in entries]
    indices, unclear = assign_images(files, references, faults, MISSING_IMAGE, split)
    yield from ((image, None) for image in unclear)
    in_order = sorted(indices.items(), key=lambda item: item[1])
    for image, index in show_progress(in_order, 'Reading labels'):
        entry, place = listed[index], f'{path}: {listed[index].file_name}'
        size = image_size(str(files.root / image))
        if size is None:
            faults.add(UNREADABLE_IMAGE, place)
            yield image, None
            continue
        check_size((entry.height, entry.width), size, place, faults)
        shapes = make_shapes(annotations[entry.id], names, size, place, faults)
        shapes = tuple(repair_shapes(shapes, size, place, faults))
        if not shapes:
            faults.add(BACKGROUND, place)
        yield image, LabelledImage(str(image), *size, shapes)


def make_shapes(
    annotations: Sequence[FullAnnotation],
    names: Mapping[Id | None, str],
    size: Size,
    place: str,
    faults: Faults,
) -> Iterator[Shape]:
    """Make the objects of annotations."""
    for annotation in annotations:
        label = names.get(annotation.category_id)
        if label is None:
            faults.add(UNKNOWN_CATEGORY, f'{place}: annotation {annotation.id}')
            continue
        masks: Any = annotation.segmentation
        if isinstance(masks, RunLengths):
            masks = dict(size=list(masks.size), counts=masks.counts)
        elif masks is not None:
            # Files with only boxes may have empty lists.
            masks = [polygon for polygon in masks if polygon] or None
        if annotation.bbox is not None and len(annotation.bbox) == 4:
            left, top, width, height = annotation.bbox
            box = (left, top, left + width, top + height)
        elif isinstance(masks, dict):
            box = measure_mask(masks, size)[1]
        else:
            box = bounding_box(masks or ())
        yield Shape(label, box, masks, bool(annotation.iscrowd or annotation.ignore))
