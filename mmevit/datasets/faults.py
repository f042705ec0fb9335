"""Faults in the data of a detector or a classifier, and what becomes of them in training."""

import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image

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
NO_BOX = Kind('box that is not four finite numbers', STOPS, 'fatal')
NO_IMAGE_SIZE = Kind('image whose height and width are not numbers', STOPS, 'fatal')
NAN_BOX = Kind('box with NaN', LEFT_OUT)
OTHER_MASK_SIZE = Kind('mask of another size than its image', 'ends training of masks')
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


def find_coco_faults(content, classes):
    """Find what is wrong in the content of a COCO annotation file.

    Args:
        content (dict): Lists ``images``, ``categories`` and, but for a test set, ``annotations``,
            whose entries have the fields of COCO.
        classes (Sequence[str]): The classes of the data set, in order.

    Returns:
        Faults: What was found.

    Example:
        >>> images = [dict(id=1, file_name=name, height=8, width=8) for name in ('a.png', 'b.png')]
        >>> content = dict(images=images, categories=[dict(id=1, name='cat')])
        >>> find_coco_faults(content, ['cat']).describe([SAME_IMAGE_ID])
        '1 x image id that another image has (image 1)'
    """
    faults = Faults()
    annotations = content.get('annotations') or []
    images = {}
    for image in content['images']:
        # The same entry twice is one image to mmdet.
        if images.setdefault(image['id'], image) != image:
            faults.add(SAME_IMAGE_ID, f'image {image["id"]}')
    for number, count in Counter(annotation['id'] for annotation in annotations).items():
        if count > 1:
            faults.add(SAME_ANNOTATION_ID, f'annotation {number}')
    find_category_faults(content['categories'], classes, faults)
    for image in images.values():
        if kind := size_fault(image):
            faults.add(kind, f'image {image["id"]}')
    names = {category['id']: category['name'] for category in content['categories']}
    usable = [
        annotation
        for annotation in annotations
        if is_usable(annotation, images.get(annotation['image_id']), names, faults)
    ]
    if content.get('annotations') is not None:
        find_unannotated(usable, images, names, classes, faults)
    return faults


def find_category_faults(categories, classes, faults):
    """Compare categories with the classes of a data set.

    mmdet numbers the categories that are among the classes as they stand in the file, so that a
    class that is missing, or stands elsewhere, would give all after it the name of another.
    """
    names = [category['name'] for category in categories]
    for value, count in Counter(category['id'] for category in categories).items():
        if count > 1:
            faults.add(SAME_CATEGORY, value)
    for name in classes:
        if names.count(name) > 1:
            faults.add(SAME_CATEGORY, name)
    for name in names:
        if name not in classes:
            faults.add(OTHER_CATEGORY, name)
    present = [name for name in names if name in classes]
    for name, expected in zip(present, classes, strict=False):
        if name != expected:
            faults.add(OTHER_ORDER, f'{name} in the place of {expected}')
    for name in classes:
        if name not in names:
            faults.add(MISSING_CLASS, name)


def size_fault(image):
    """Say what is wrong with the annotated size of an image.

    Args:
        image (dict): The image.

    Returns:
        Kind | None: What is, if anything.
    """
    sides = (image['height'], image['width'])
    if not all(isinstance(side, (int, float)) for side in sides):
        return NO_IMAGE_SIZE
    return None if all(side > 0 for side in sides) else EMPTY_IMAGE


def is_usable(annotation, image, names, faults):
    """Find what is wrong with an annotation.

    Args:
        annotation (dict): The annotation.
        image (dict | None): Its image, if that is listed.
        names (dict): Names of the categories by their ids.
        faults (Faults): Is added to.

    Returns:
        bool: Whether mmdet uses it.
    """
    name = f'annotation {annotation["id"]}'
    if annotation.get('ignore'):
        return False
    if image is None:
        faults.add(UNKNOWN_IMAGE, name)
    elif annotation['category_id'] not in names:
        faults.add(UNKNOWN_CATEGORY, name)
    elif size_fault(image):
        return False
    elif kind := box_fault(annotation, image):
        faults.add(kind, name)
        return kind is BOX_ACROSS
    elif has_other_size(annotation.get('segmentation'), image):
        faults.add(OTHER_MASK_SIZE, name)
    else:
        return True
    return False


def box_fault(annotation, image):
    """Say what is wrong with the box of an annotation.

    Args:
        annotation (dict): The annotation.
        image (dict): Its image.

    Returns:
        Kind | None: What is, if anything.
    """
    box, sides = annotation['bbox'], (image['width'], image['height'])
    numbers = (*box, annotation['area']) if isinstance(box, (list, tuple)) else ()
    if len(numbers) != 5 or not all(isinstance(number, (int, float)) for number in numbers):
        return NO_BOX
    if any(map(math.isnan, numbers)):
        return NAN_BOX
    if any(map(math.isinf, numbers)):
        return NO_BOX
    left, top, width, height = box
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return EMPTY_BOX
    right, bottom = left + width, top + height
    if min(right, sides[0]) <= max(left, 0) or min(bottom, sides[1]) <= max(top, 0):
        return BOX_OUTSIDE
    # Annotators round, by up to a pixel.
    is_across = left < -1 or top < -1 or right > sides[0] + 1 or bottom > sides[1] + 1
    return BOX_ACROSS if is_across else None


def has_other_size(segmentation, image):
    """Whether a run-length encoded mask is of another size than its image."""
    is_encoded = isinstance(segmentation, dict) and 'size' in segmentation
    return is_encoded and list(segmentation['size']) != [image['height'], image['width']]


def find_unannotated(annotations, images, names, classes, faults):
    """Find images and classes of which there are no annotations."""
    annotated = {annotation['image_id'] for annotation in annotations}
    for number in images:
        if number not in annotated:
            faults.add(NO_ANNOTATIONS, f'image {number}')
    used = {names[annotation['category_id']] for annotation in annotations}
    for name in classes:
        if name in names.values() and name not in used:
            faults.add(NO_EXAMPLES, name)


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
