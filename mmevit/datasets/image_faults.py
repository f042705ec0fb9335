"""Find faults in image files."""

import math
import os
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image

from .faults import ENDS, STOPS, FaultType

# Larger images are treated as unreadable: a hundred of them in memory are 30 GB.
MAX_PIXELS = 100_000_000
REPLACED = 'replaced by another image; blank in evaluation; too many end the run'
MISSING_FILE = FaultType('missing file', STOPS, 'fatal')
UNREADABLE_FILE = FaultType('file that cannot be read', ENDS, 'fatal')
EMPTY_FILE = FaultType('empty file', REPLACED)
CORRUPT_IMAGE = FaultType('corrupt image', REPLACED)
TRUNCATED = FaultType('truncated image', f'{REPLACED}; older OpenCV fills it with gray')
HUGE = FaultType(f'image of more than {MAX_PIXELS // 1_000_000} million pixels', REPLACED)
OTHER_SIZE = FaultType(
    'image of another size than annotated', 'left out if smaller, else misplaced'
)
OTHER_CHANNELS = FaultType('image with another number of channels than the model expects', ENDS)
GREY = FaultType('grayscale image', 'loaded with three equal channels', 'note')
TRANSPARENT = FaultType('image with transparency', 'transparency is ignored', 'note')
DEEP = FaultType('image of 16 bits', 'converted to 8 bits', 'note')
DEEP_KEPT = FaultType('image of 16 bits', 'values up to 65535', 'note')
CMYK = FaultType('image in CMYK', 'converted to RGB', 'note')


def find_image_faults(
    path: str | Path,
    size: tuple[float, float] | None = None,
    color_type: str = 'color',
    in_channels: int = 3,
) -> list[FaultType]:
    """Find the faults of an image file.

    Args:
        path: The file.
        size: Annotated height and width in pixels.
        color_type: How it is loaded, see :func:`mmcv.imread`.
        in_channels: Number of input channels of the model.

    Example:
        >>> find_image_faults('no/such.png')[0].name
        'missing file'
    """
    if not os.path.isfile(path):
        return [MISSING_FILE]
    if os.path.getsize(path) == 0:
        return [EMPTY_FILE]
    if is_unreadable(path):
        return [UNREADABLE_FILE]
    if is_huge(path, MAX_PIXELS):
        return [HUGE]
    if is_truncated(path):
        return [TRUNCATED]
    try:
        pixels = mmcv.imread(str(path), 'unchanged')
    # What a decoder raises depends on the backend and the format.
    except Exception:
        pixels = None
    if pixels is None:
        return [CORRUPT_IMAGE]
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
    return [fault for fault, is_found in checks.items() if is_found]


def is_unreadable(path: str | Path) -> bool:
    """Whether a file cannot be read, because of its permissions or a disk error."""
    try:
        with open(path, 'rb') as file:
            file.read(1)
    except OSError:
        return True
    return False


def is_huge(path: str | Path, max_pixels: int) -> bool:
    """Whether the header of an image says that it has too many pixels."""
    try:
        with Image.open(path) as image:
            return math.prod(image.size) > max_pixels
    except Image.DecompressionBombError:
        return True  # above 178 million Pillow does not return the size
    except Exception:
        return False


def is_truncated(path: str | Path) -> bool:
    """Whether an image file ends too early."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        return 'truncated' in str(error)
    return False


def is_cmyk(path: str | Path) -> bool:
    """Whether the pixels of an image are in CMYK."""
    try:
        with Image.open(path) as image:
            return image.mode == 'CMYK'
    except Exception:
        return False
