"""Faults in the data of a detector or a classifier, and what becomes of them in training."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image

from .coco import Annotation, Category, CocoFile, MaskAnnotation, RunLengths
from .coco import Image as ImageEntry

# Larger images are taken as unreadable: a hundred of them in memory are 30 GB.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        name (str): What is wrong with one thing, in a few words.
        consequence (str): What training makes of it.
        severity (str): ``'fatal'`` if nothing can be trained, ``'fault'`` if something is lost, and
            ``'note'`` if it may well be meant.
    """

    name: str
    consequence: str
    severity: str = 'fault'


STOPS = 'training does not start'
LEFT_OUT = 'left out'
NO_LAYOUT = Kind('annotation file that cannot be read', STOPS, 'fatal')
SAME_IMAGE_ID = Kind('image id that another image has', STOPS, 'fatal')
SAME_ANNOTATION_ID = Kind('annotation id that another one has', STOPS, 'fatal')
SAME_CATEGORY = Kind('category whose id or name another one has', STOPS, 'fatal')
OTHER_ORDER = Kind('class in another order than in the annotation file', STOPS, 'fatal')
OTHER_CLASSES = Kind('data sets whose classes differ', STOPS, 'fatal')
NO_BOX = Kind('annotation without area, or without four numbers in bbox', STOPS, 'fatal')
NO_MASK = Kind('annotation without segmentation, for a pipeline that loads masks', STOPS, 'fatal')
OTHER_MASK_SIZE = Kind('mask of another size than its image', STOPS, 'fatal')
NOTHING_TO_LEARN = Kind(
    'file whose annotations are all iscrowd, left out or of no class',
    'training does not start without other data',
)
INFINITE_BOX = Kind('box or area that is infinite', 'clipped by Resize, else NaN losses')
NAN_BOX = Kind('box with NaN', LEFT_OUT)
EMPTY_BOX = Kind('box or area of less than one pixel', LEFT_OUT)
BOX_OUTSIDE = Kind('box outside its image', LEFT_OUT)
UNKNOWN_IMAGE = Kind('annotation of an image that is not listed', LEFT_OUT)
UNKNOWN_CATEGORY = Kind('annotation of a category that is not listed', LEFT_OUT)
EMPTY_IMAGE = Kind('image of no height or width', LEFT_OUT)
MISSING_CLASS = Kind('class that the annotation file has not', 'never learnt')
BOX_ACROSS = Kind('box that reaches out of its image', 'clipped by Resize', 'note')
OTHER_CATEGORY = Kind('category that is not among the classes', LEFT_OUT, 'note')
NO_ANNOTATIONS = Kind('image without annotations', 'left out unless the config says', 'note')
NO_EXAMPLES = Kind('class without annotations', 'never learnt', 'note')

REPLACED = 'another is drawn; blank in evaluation; too many end the run'
MISSING_FILE = Kind('file that is missing', STOPS, 'fatal')
CLOSED_FILE = Kind('file that cannot be read', 'ends training', 'fatal')
EMPTY_FILE = Kind('file that is empty', REPLACED)
UNREADABLE = Kind('file that is no whole image', REPLACED)
TRUNCATED = Kind('image that is cut off', f'{REPLACED}; with older OpenCV its end is grey')
HUGE = Kind(f'image of more than {MAX_PIXELS // 1_000_000} million pixels', REPLACED)
OTHER_SIZE = Kind('image of another size than annotated', 'left out if smaller, else misplaced')
WRONG_LABEL = Kind('label that the model has no class for', STOPS, 'fatal')
OTHER_CHANNELS = Kind('image with another number of channels than the model takes', 'ends training')
GREY = Kind('grey image', 'the same in three channels', 'note')
TRANSPARENT = Kind('image with transparency', 'transparency is ignored', 'note')
DEEP = Kind('image of 16 bits', 'made 8 bits', 'note')
DEEP_KEPT = Kind('image of 16 bits', 'values up to 65535', 'note')
CMYK = Kind('image in CMYK', 'made RGB', 'note')


@dataclass
class Faults:
    """Counts what is wrong, and keeps the first examples.

    Args:
        examples (dict[Kind, list[str]]): Some things of each kind.
        counts (Counter): How many there are of each.
    """

    examples: dict = field(default_factory=lambda: defaultdict(list))
    counts: Counter = field(default_factory=Counter)

    def add(self, kind, example):
        """Count a fault.

        Args:
            kind (Kind): What is wrong.
            example (object): With what.
        """
        self.counts[kind] += 1
        if len(self.examples[kind]) < 3:
            self.examples[kind].append(str(example))

    def of(self, severity):
        """List the kinds of a severity that were found.

        Args:
            severity (str): The severity.

        Returns:
            list[Kind]: The kinds.
        """
        return [kind for kind in self.counts if kind.severity == severity]

    def describe(self, kinds):
        """Say in a line how many there are, and which.

        Args:
            kinds (Sequence[Kind]): Of what.

        Returns:
            str: Count, name and the first example of each kind.

        Example:
            >>> faults = Faults()
            >>> faults.add(NAN_BOX, 'annotation 7')
            >>> faults.describe([NAN_BOX])
            '1 x box with NaN (annotation 7)'
        """
        return '; '.join(
            f'{self.counts[kind]} x {kind.name} ({self.examples[kind][0]})' for kind in kinds
        )


def find_coco_faults(content: CocoFile, classes: Sequence[str]) -> Faults:
    """Find what is wrong in the content of a COCO annotation file.

    Args:
        content: What was read; masks are checked if they were read.
        classes: The classes of the data set, in order.

    Example:
        >>> from mmevit.datasets.coco import Category, CocoFile, Image
        >>> images = [Image(1, name, height=8, width=8) for name in ('a.png', 'b.png')]
        >>> content = CocoFile(images, [Category(1, 'cat')])
        >>> find_coco_faults(content, ['cat']).describe([SAME_IMAGE_ID])
        '1 x image id that another image has (image 1)'
    """
    faults = Faults()
    images = {}
    for image in content.images:
        known = images.setdefault(image.id, image)
        # The same entry twice is one image to mmdet.
        if known is not image and known != image:
            faults.add(SAME_IMAGE_ID, f'image {image.id}')
    for image in images.values():
        if image.is_empty:
            faults.add(EMPTY_IMAGE, f'image {image.id}')
    find_category_faults(content.categories, classes, faults)
    if content.annotations is not None:
        find_annotation_faults(content, images, classes, faults)
    return faults


def find_category_faults(
    categories: Sequence[Category], classes: Sequence[str], faults: Faults
) -> None:
    """Compare categories with the classes of a data set.

    mmdet numbers the categories that are among the classes as they stand in the file, so that a
    class that is missing, or stands elsewhere, would give all after it the name of another.
    """
    names = Counter(category.name for category in categories)
    known = set(classes)
    for value in list_repeated(category.id for category in categories):
        faults.add(SAME_CATEGORY, value)
    for name in classes:
        if names[name] > 1:
            faults.add(SAME_CATEGORY, name)
    for category in categories:
        if category.name not in known:
            faults.add(OTHER_CATEGORY, category.name)
    present = [category.name for category in categories if category.name in known]
    for name, expected in zip(present, classes, strict=False):
        if name != expected:
            faults.add(OTHER_ORDER, f'{name} in the place of {expected}')
    for name in classes:
        if name not in names:
            faults.add(MISSING_CLASS, name)


def find_annotation_faults(
    content: CocoFile, images: dict, classes: Sequence[str], faults: Faults
) -> None:
    """Find annotations that mmdet leaves out or stops at, and images and classes without any."""
    for number in list_repeated(annotation.id for annotation in content.annotations):
        faults.add(SAME_ANNOTATION_ID, f'annotation {number}')
    names = {category.id: category.name for category in content.categories}
    known = {*classes}
    others = {number for number, name in names.items() if name not in known}
    empty = {number for number, image in images.items() if image.is_empty}
    annotated, learnt = set(), set()
    for annotation in content.annotations:
        if annotation.ignore or annotation.image_id in empty:
            continue
        kind = annotation_fault(annotation, images.get(annotation.image_id), names)
        # mmdet reads the boxes of categories that are not among the classes, but uses none.
        if annotation.category_id in others and kind not in (NO_BOX, UNKNOWN_IMAGE):
            continue
        if kind:
            faults.add(kind, f'annotation {annotation.id}')
        if kind is None or kind.consequence != LEFT_OUT:
            annotated.add(annotation.image_id)
            if not annotation.iscrowd:
                learnt.add(names.get(annotation.category_id))
    for number in images:
        if number not in annotated:
            faults.add(NO_ANNOTATIONS, f'image {number}')
    present = set(names.values())
    for name in classes:
        if name in present and name not in learnt:
            faults.add(NO_EXAMPLES, name)
    if content.annotations and not learnt:
        faults.add(NOTHING_TO_LEARN, f'{len(content.annotations)} annotations')


def list_repeated(values: Iterable) -> list:
    """List the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def annotation_fault(annotation: Annotation, image: ImageEntry | None, names: dict) -> Kind | None:
    """Say what is wrong with an annotation; ``names`` are those of the categories by their ids."""
    if image is None:
        return UNKNOWN_IMAGE
    if annotation.area is None or annotation.bbox is None or len(annotation.bbox) != 4:
        return NO_BOX
    if annotation.category_id not in names:
        return UNKNOWN_CATEGORY
    kind = box_fault(annotation, image)
    # Masks of boxes that are left out are not loaded.
    if isinstance(annotation, MaskAnnotation) and kind in (None, BOX_ACROSS):
        return mask_fault(annotation, image) or kind
    return kind


def box_fault(annotation: Annotation, image: ImageEntry) -> Kind | None:
    """Say what is wrong with the box of an annotation."""
    left, top, width, height = annotation.bbox
    right, bottom = left + width, top + height
    if not math.isfinite(right + bottom + annotation.area):
        numbers = (*annotation.bbox, annotation.area)
        return NAN_BOX if any(map(math.isnan, numbers)) else INFINITE_BOX
    if width < 1 or height < 1 or annotation.area <= 0:
        return EMPTY_BOX
    if right <= 0 or bottom <= 0 or left >= image.width or top >= image.height:
        return BOX_OUTSIDE
    # Annotators round, by up to a pixel.
    if left < -1 or top < -1 or right > image.width + 1 or bottom > image.height + 1:
        return BOX_ACROSS
    return None


def mask_fault(annotation: MaskAnnotation, image: ImageEntry) -> Kind | None:
    """Say what is wrong with the mask of an annotation."""
    mask = annotation.segmentation
    if not mask:
        return NO_MASK
    sizes = (None, [image.height, image.width])
    return OTHER_MASK_SIZE if isinstance(mask, RunLengths) and mask.size not in sizes else None


def find_image_faults(
    path: str | Path,
    size: tuple[int, int] | None = None,
    color_type: str = 'color',
    in_channels: int = 3,
) -> list[Kind]:
    """Find what is wrong with the file of an image.

    Args:
        path: The file.
        size: Its annotated height and width in pixels.
        color_type: How it is loaded, see :func:`mmcv.imread`.
        in_channels: How many channels the model takes.

    Returns:
        What is, none if nothing.

    Example:
        >>> find_image_faults('no/such.png')[0].name
        'file that is missing'
    """
    if not os.path.isfile(path):
        return [MISSING_FILE]
    if os.path.getsize(path) == 0:
        return [EMPTY_FILE]
    if is_closed(path):
        return [CLOSED_FILE]
    if is_huge(path, MAX_PIXELS):
        return [HUGE]
    if is_truncated(path):
        return [TRUNCATED]
    try:
        pixels = mmcv.imread(str(path), 'unchanged')
    # What a decoder raises at hostile bytes depends on the backend and the format.
    except Exception:
        pixels = None
    if pixels is None:
        return [UNREADABLE]
    loaded = mmcv.imread(str(path), color_type)
    is_kept, is_grey = color_type == 'unchanged', pixels.ndim == 2
    checks = {
        OTHER_SIZE: size is not None and loaded.shape[:2] != tuple(size),
        OTHER_CHANNELS: (1 if loaded.ndim == 2 else loaded.shape[2]) != in_channels,
        DEEP: pixels.dtype == np.uint16 and not is_kept,
        DEEP_KEPT: pixels.dtype == np.uint16 and is_kept,
        GREY: is_grey and loaded.ndim == 3,
        TRANSPARENT: not is_grey and pixels.shape[2] == 4 and not is_kept,
        CMYK: is_cmyk(path) and loaded.ndim == 3,
    }
    return [kind for kind, is_found in checks.items() if is_found]


def is_closed(path):
    """Whether a file cannot be read, for want of permission or since the disk fails."""
    try:
        with open(path, 'rb') as file:
            file.read(1)
    except OSError:
        return True
    return False


def is_huge(path, max_pixels):
    """Whether the header of an image says that it is too large to be decoded.

    Args:
        path (str | Path): The file.
        max_pixels (int): How many pixels it may have.

    Returns:
        bool: Whether it has more; False if the header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return math.prod(image.size) > max_pixels
    except Image.DecompressionBombError:
        # Pillow does not even tell the size, which is above 178 million.
        return True
    except Exception:
        return False


def is_truncated(path):
    """Whether the file of an image ends too early."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        return 'truncated' in str(error)
    return False


def is_cmyk(path):
    """Whether the pixels of an image are stored as inks."""
    try:
        with Image.open(path) as image:
            return image.mode == 'CMYK'
    except Exception:
        return False
