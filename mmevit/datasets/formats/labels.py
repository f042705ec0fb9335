"""Images with labelled objects, which the readers of all formats return."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmevit.datasets.faults import LEFT_OUT, Faults, FaultType

NO_IMAGE = FaultType('label file without an image', LEFT_OUT)
MISSING_IMAGE = FaultType('listed image that is not in the data', LEFT_OUT)
NOT_UNIQUE = FaultType('labels that fit several images, or image with several labels', LEFT_OUT)
LISTED_TWICE = FaultType('image that is listed twice in a split', 'the second time left out')
UNREADABLE_IMAGE = FaultType('image whose size cannot be read', LEFT_OUT)
UNREADABLE_LABELS = FaultType('label file that cannot be read', 'left out with its image')
NO_LABELS = FaultType('image without labels', LEFT_OUT)
NO_SPLIT = FaultType('image of no split', LEFT_OUT)
IN_TWO_SPLITS = FaultType('image that is also in a later split', LEFT_OUT)
OTHER_SIZE = FaultType('image of another size than in its labels', 'boxes may be misplaced')
NAN = FaultType('box or mask with NaN or infinity', LEFT_OUT)
EMPTY_BOX = FaultType('box of less than one pixel, or outside its image', LEFT_OUT)
BOX_ACROSS = FaultType('box partly outside its image', 'clipped')
FEW_POINTS = FaultType('polygon of fewer than three points', LEFT_OUT)
NO_AREA = FaultType('point, line or unsupported shape', LEFT_OUT)
OTHER_MASK_SIZE = FaultType('mask of another size than its image', LEFT_OUT)
IGNORED_PIXELS = FaultType('map with white or outlines', 'these pixels are ignored', 'note')
IGNORED_OBJECT = FaultType(
    'object marked as crowd or difficult',
    'neither trained on nor evaluated; CVAT marks brush masks so',
    'note',
)
BACKGROUND = FaultType('image without objects', 'kept as background', 'note')

# Height and width in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """A labelled object.

    Args:
        label: The name of its class.
        box: Left, top, right and bottom in pixels from the corner of the image.
        segmentation: Its polygons, each x and y in turn, or run lengths, as in COCO. None for a
            box alone.
        is_ignored: Whether it counts neither in training nor in evaluation, COCO's ``iscrowd``.
    """

    label: str
    box: tuple[float, float, float, float]
    segmentation: Any = None
    is_ignored: bool = False


@dataclass(frozen=True)
class LabelledImage:
    """An image: its path relative to the data, with slashes, its size in pixels, its objects."""

    path: str
    height: int
    width: int
    shapes: Sequence[Shape]


@dataclass
class LabelledData:
    """Labelled images by split (``'train'``, ``'val'``, ``'test'``), and what was left out.

    The only split of data that are not split is ``''``. If ``is_semantic``, a shape is not an
    object, but all pixels of a class in an image, also those of a background.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, list[LabelledImage]]
    faults: Faults = field(default_factory=Faults)
    is_semantic: bool = False

    @property
    def images(self) -> list[LabelledImage]:
        """The images of all splits."""
        return [image for images in self.splits.values() for image in images]

    @property
    def shapes(self) -> list[Shape]:
        """The objects of all images."""
        return [shape for image in self.images for shape in image.shapes]

    @property
    def has_masks(self) -> bool:
        """Whether all objects have masks, so that instance segmentation can learn from them."""
        shapes = self.shapes
        return bool(shapes) and all(shape.segmentation is not None for shape in shapes)


def sorted_classes(splits: Mapping[str, Sequence[LabelledImage]]) -> tuple[str, ...]:
    """Sort the names of the classes that occur."""
    labels = {
        shape.label for images in splits.values() for image in images for shape in image.shapes
    }
    return tuple(sorted(labels))


def bounding_box(polygons: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return the box around polygons."""
    points = [value for polygon in polygons for value in polygon]
    if len(points) < 2:
        return (0, 0, 0, 0)
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def outline(label: str, polygons: Sequence[Sequence[float]]) -> Shape:
    """Make an object of its polygons."""
    return Shape(label, bounding_box(polygons), [list(polygon) for polygon in polygons])


def check_size(annotated: Sequence[float | None], size: Size, place: str, faults: Faults) -> None:
    """Count an image of another height and width than annotated; some tools write 0."""
    if all(annotated) and tuple(annotated) != size:
        (height, width), (old_height, old_width) = size, annotated
        faults.add(
            OTHER_SIZE, f'{place}: {width} x {height}, in its labels {old_width} x {old_height}'
        )


def repair_shapes(
    shapes: Iterable[Shape], size: Size, place: str, faults: Faults
) -> Iterator[Shape]:
    """Clip boxes to their image, and leave out invalid polygons and objects without area.

    Args:
        shapes: The objects.
        size: Height and width of the image.
        place: Where they are from, for the counted ``faults``.
        faults: Is extended.
    """
    for shape in shapes:
        box, masks = shape.box, shape.segmentation
        text = f'{place}: {shape.label} {tuple(round(side, 1) for side in box)}'
        if isinstance(masks, list):
            polygons = [polygon for polygon in masks if is_polygon(polygon)]
            if len(polygons) < len(masks):
                faults.add(FEW_POINTS, text)
            if not polygons:
                continue
            masks = polygons
        elif masks is not None and tuple(masks['size']) != size:
            faults.add(OTHER_MASK_SIZE, text)
            continue
        numbers = [*box, *(sum(masks, []) if isinstance(masks, list) else ())]
        if not all(map(math.isfinite, numbers)):
            faults.add(NAN, text)
            continue
        left, top, right, bottom = box
        clipped = (max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0]))
        if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
            faults.add(EMPTY_BOX, text)
            continue
        # A pixel is what rounding of corners can cost, and where VOC starts to count.
        if max(abs(old - new) for old, new in zip(box, clipped, strict=True)) > 1:
            faults.add(BOX_ACROSS, text)
        if shape.is_ignored:
            faults.add(IGNORED_OBJECT, text)
        yield Shape(shape.label, clipped, masks, shape.is_ignored)


def is_polygon(values: Sequence[float]) -> bool:
    """Whether x and y in turn are three points or more."""
    return len(values) >= 6 and len(values) % 2 == 0
