"""COCO JSON in its usual layouts, also one ``_annotations.coco.json`` for each split."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from mmevit.datasets.coco import Annotation, Category, Id, Image, parse_coco, parse_json
from mmevit.datasets.coco_faults import UNKNOWN_CATEGORY, UNKNOWN_IMAGE
from mmevit.datasets.faults import Faults
from mmevit.datasets.image_faults import image_size
from mmevit.utils.errors import ConfigError

from .files import Files, split_of
from .labels import (
    BACKGROUND,
    MISSING_IMAGE,
    NO_LABELS,
    NOT_UNIQUE,
    UNREADABLE_IMAGE,
    LabelledData,
    LabelledImage,
    Shape,
    bounding_box,
    repair_shapes,
)
from .reading import show_progress


class FullCategory(Category, gc=False):
    """A category with the one above it."""

    supercategory: Any = None


class FullAnnotation(Annotation, gc=False):
    """An annotation with its whole segmentation."""

    segmentation: Any = None


class FullCocoFile(msgspec.Struct):
    """The content of an annotation file."""

    images: list[Image]
    categories: list[FullCategory]
    annotations: list[FullAnnotation]


class Parts(msgspec.Struct):
    """The names of the lists of a JSON file, by which annotations are recognised."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


def is_found(files: Files) -> bool:
    """Whether there is an annotation file."""
    return bool(find_annotation_files(files))


def find_annotation_files(files: Files) -> list[PurePosixPath]:
    """List the annotation files; those of boxes and masks if COCO's other tasks are there too."""
    found = [path for path in files.ending('.json') if is_annotation_file(files.root / path)]
    return [path for path in found if path.name.startswith('instances_')] or found


def is_annotation_file(path: Path) -> bool:
    """Whether a JSON file has images, categories and annotations."""
    try:
        return bool(parse_json(path, Parts).annotations)
    except (ValueError, msgspec.ValidationError):
        return False


def read(files: Files) -> LabelledData:
    """Read the data, with splits by the names of the annotation files, else by their folders."""
    faults = Faults()
    classes: dict[str, None] = {}
    splits: defaultdict[str, list[LabelledImage]] = defaultdict(list)
    listed = set()
    for path in find_annotation_files(files):
        content = parse_coco(files.root / path, FullCocoFile)
        classes |= dict.fromkeys(choose_names(content).values())
        images = list(read_images(files, path, content, faults))
        listed |= {image.path for image in images}
        splits[split_of(path.stem, *path.parts[-2::-1])] += images
    if len(splits) > 1 and (others := splits.pop('', [])):
        raise ConfigError(
            f'{files.root} has annotation files of splits, and others with {len(others)} images. '
            'Name them train, val or test too, or remove them.'
        )
    faults.add_all((NO_LABELS, path) for path in files.images if str(path) not in listed)
    return LabelledData(files.root, tuple(classes), dict(splits), faults)


def choose_names(content: FullCocoFile) -> dict[Id | None, str]:
    """Return the names of the categories by id, without an unused one above the others.

    Exports of Roboflow have such a category, which is no class.
    """
    used = {annotation.category_id for annotation in content.annotations}
    above = {category.supercategory for category in content.categories}
    return {
        category.id: str(category.name)
        for category in content.categories
        if category.id in used or category.name not in above
    }


def read_images(
    files: Files, path: PurePosixPath, content: FullCocoFile, faults: Faults
) -> Iterator[LabelledImage]:
    """Find the images of an annotation file, and their objects."""
    names = choose_names(content)
    annotations: defaultdict[Id, list[FullAnnotation]] = defaultdict(list)
    for annotation in content.annotations:
        annotations[annotation.image_id].append(annotation)
    for entry in show_progress(content.images):
        place = f'{path}: {entry.file_name}'
        own = annotations.pop(entry.id, [])
        found = files.find_images(entry.file_name, path)
        size = image_size(str(files.root / found[0])) if len(found) == 1 else None
        if size is None:
            fault = UNREADABLE_IMAGE if len(found) == 1 else NOT_UNIQUE if found else MISSING_IMAGE
            faults.add(fault, place)
            continue
        shapes = repair_shapes(make_shapes(own, names, place, faults), size, place, faults)
        image = LabelledImage(str(found[0]), *size, tuple(shapes))
        if not image.shapes:
            faults.add(BACKGROUND, place)
        yield image
    faults.add_all(
        (UNKNOWN_IMAGE, f'{path}: annotation {annotation.id}')
        for own in annotations.values()
        for annotation in own
    )


def make_shapes(
    annotations: Sequence[FullAnnotation],
    names: Mapping[Id | None, str],
    place: str,
    faults: Faults,
) -> Iterator[Shape]:
    """Make the objects of annotations."""
    for annotation in annotations:
        label = names.get(annotation.category_id)
        if label is None:
            faults.add(UNKNOWN_CATEGORY, f'{place}: annotation {annotation.id}')
            continue
        # Files with boxes alone may have empty lists.
        segmentation = annotation.segmentation or None
        if annotation.bbox is not None and len(annotation.bbox) == 4:
            left, top, width, height = annotation.bbox
            box = (left, top, left + width, top + height)
        else:
            box = bounding_box(segmentation if isinstance(segmentation, list) else ())
        yield Shape(label, box, segmentation, bool(annotation.iscrowd or annotation.ignore))
