"""Find faults in COCO annotation files."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from .coco import Annotation, Category, CocoFile, Image, MaskAnnotation, RunLengths
from .faults import LEFT_OUT, STOPS, Faults, FaultType, Found

SAME_IMAGE_ID = FaultType('duplicate image id', STOPS, 'fatal')
SAME_ANNOTATION_ID = FaultType('duplicate annotation id', STOPS, 'fatal')
SAME_CATEGORY = FaultType('duplicate category id or name', STOPS, 'fatal')
OTHER_ORDER = FaultType('class in another order than in the annotation file', STOPS, 'fatal')
NO_BOX = FaultType('annotation without area, or without four numbers in bbox', STOPS, 'fatal')
NO_MASK = FaultType('annotation without segmentation, which the pipeline loads', STOPS, 'fatal')
OTHER_MASK_SIZE = FaultType('mask of another size than its image', STOPS, 'fatal')
NOTHING_TO_LEARN = FaultType(
    'file whose annotations are all iscrowd, left out or of other classes',
    'training does not start without other data',
)
INFINITE_BOX = FaultType('infinite box or area', 'clipped by Resize, else NaN losses')
NAN_BOX = FaultType('box with NaN', LEFT_OUT)
EMPTY_BOX = FaultType('box or area of less than one pixel', LEFT_OUT)
BOX_OUTSIDE = FaultType('box outside its image', LEFT_OUT)
UNKNOWN_IMAGE = FaultType('annotation of an image that is not listed', LEFT_OUT)
UNKNOWN_CATEGORY = FaultType('annotation of a category that is not listed', LEFT_OUT)
RUN_LENGTHS = FaultType('run-length mask, with poly2mask=False in the pipeline', LEFT_OUT)
EMPTY_IMAGE = FaultType('image without height or width', LEFT_OUT)
MISSING_CLASS = FaultType('class that is missing in the annotation file', 'never learnt')
BOX_ACROSS = FaultType('box partly outside its image', 'clipped by Resize', 'note')
OTHER_CATEGORY = FaultType('category that is not among the classes', LEFT_OUT, 'note')
NO_ANNOTATIONS = FaultType('image without annotations', 'left out by filter_empty_gt', 'note')
NO_EXAMPLES = FaultType('class without annotations', 'never learnt', 'note')


def find_coco_faults(
    content: CocoFile, classes: Sequence[str], only_polygons: bool = False
) -> Faults:
    """Find the faults of a COCO annotation file.

    Args:
        content: The file.
        classes: The classes of the data set in order.
        only_polygons: Whether its pipeline does not load run-length masks.
    """
    return Faults(
        chain(
            find_image_entry_faults(content.images),
            find_category_faults(content.categories, classes),
            find_annotation_faults(content, classes, only_polygons),
        )
    )


def find_image_entry_faults(entries: Sequence[Image]) -> Iterator[Found]:
    """Find images that share an id or have no pixels."""
    images = {}
    for image in entries:
        known = images.setdefault(image.id, image)
        # The same entry twice is one image to mmdet; one with NaN does not equal itself.
        if known is not image and known != image:
            yield SAME_IMAGE_ID, f'image {image.id}'
    for image in images.values():
        if image.is_empty:
            yield EMPTY_IMAGE, f'image {image.id}'


def find_category_faults(categories: Sequence[Category], classes: Sequence[str]) -> Iterator[Found]:
    """Compare categories with the classes of a data set.

    mmdet numbers the categories that are among the classes in their order in the file, so that a
    class that is missing or in another place would rename all those after it. It labels annotations
    by category id, so that categories with the same id are confused unless none of them is a class.
    """
    used = set(classes)
    names_by_id = defaultdict(list)
    for category in categories:
        names_by_id[category.id].append(category.name)
    for number, names in names_by_id.items():
        if len(names) > 1 and used.intersection(names):
            yield SAME_CATEGORY, f'id {number}'
    names = [category.name for category in categories]
    counts = Counter(names)
    for name in classes:
        if counts[name] > 1:
            yield SAME_CATEGORY, name
        if name not in counts:
            yield MISSING_CLASS, name
    for name in names:
        if name not in used:
            yield OTHER_CATEGORY, name
    for name, expected in zip(filter(used.__contains__, names), classes, strict=False):
        if name != expected:
            yield OTHER_ORDER, f'{name} in the place of {expected}'


def find_annotation_faults(
    content: CocoFile, classes: Sequence[str], only_polygons: bool
) -> Iterator[Found]:
    """Find faulty annotations, and images and classes without any."""
    annotations = content.annotations
    if annotations is None:
        return
    for number, count in Counter(annotation.id for annotation in annotations).items():
        if count > 1:
            yield SAME_ANNOTATION_ID, f'annotation {number}'
    images = {image.id: image for image in content.images}
    names = {category.id: category.name for category in content.categories}
    used = set(classes)
    others = {number for number, name in names.items() if name not in used}
    annotated, learnt = set(), set()
    for annotation in annotations:
        image = images.get(annotation.image_id)
        if annotation.ignore or (image is not None and image.is_empty):
            continue
        fault = find_annotation_fault(annotation, image, names, only_polygons)
        # mmdet reads the boxes of categories that are not among the classes, but uses none.
        if annotation.category_id in others and fault not in (NO_BOX, UNKNOWN_IMAGE):
            continue
        if fault:
            yield fault, f'annotation {annotation.id}'
        if fault is None or fault.consequence != LEFT_OUT:
            annotated.add(annotation.image_id)
            if not annotation.iscrowd:
                learnt.add(names.get(annotation.category_id))
    for number in images:
        if number not in annotated:
            yield NO_ANNOTATIONS, f'image {number}'
    present = set(names.values())
    for name in classes:
        if name in present and name not in learnt:
            yield NO_EXAMPLES, name
    if annotations and not learnt:
        yield NOTHING_TO_LEARN, f'{len(annotations)} annotations'


def find_annotation_fault(
    annotation: Annotation, image: Image | None, names: dict, only_polygons: bool
) -> FaultType | None:
    """Find the fault of an annotation; ``names`` are the categories by id."""
    if image is None:
        return UNKNOWN_IMAGE
    if annotation.area is None or annotation.bbox is None or len(annotation.bbox) != 4:
        return NO_BOX
    if annotation.category_id not in names:
        return UNKNOWN_CATEGORY
    fault = find_box_fault(annotation.bbox, annotation.area, image)
    # Masks of boxes that are left out are not loaded.
    if isinstance(annotation, MaskAnnotation) and fault in (None, BOX_ACROSS):
        mask, sizes = annotation.segmentation, (None, [image.height, image.width])
        if not mask:
            return NO_MASK
        if isinstance(mask, RunLengths) and mask.size not in sizes:
            return OTHER_MASK_SIZE
        # mmdet ignores crowds in any case.
        if isinstance(mask, RunLengths) and only_polygons and not annotation.iscrowd:
            return RUN_LENGTHS
    return fault


def find_box_fault(bbox: tuple[float, ...], area: float, image: Image) -> FaultType | None:
    """Find the fault of a box."""
    left, top, width, height = bbox
    right, bottom = left + width, top + height
    if not math.isfinite(right + bottom + area):
        return NAN_BOX if any(map(math.isnan, (*bbox, area))) else INFINITE_BOX
    if width < 1 or height < 1 or area <= 0:
        return EMPTY_BOX
    if right <= 0 or bottom <= 0 or left >= image.width or top >= image.height:
        return BOX_OUTSIDE
    # Annotators round, by up to a pixel.
    if left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1:
        return BOX_ACROSS
    return None
