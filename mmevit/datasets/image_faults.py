"""Find faults in image files and segmentation maps."""

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
BROKEN_MAP = FaultType('segmentation map that cannot be decoded', ENDS)
MAP_CHANNELS = FaultType('segmentation map of more than one channel', ENDS, 'fatal')
MAP_SIZE = FaultType('segmentation map of another size than its image', ENDS)
MAP_VALUES = FaultType('segmentation map with values beyond the classes', ENDS, 'fatal')
ORIENTATION = 0x0112  # the EXIF tag; from 5 on height and width are swapped


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
    """
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return [EMPTY_FILE]
    if fault := find_file_fault(path):
        return [fault]
    if is_huge(path, MAX_PIXELS):
        return [HUGE]
    mode = None
    try:
        with Image.open(path) as image:
            mode = image.mode
            image.load()
    except Exception as error:
        if 'truncated' in str(error):
            return [TRUNCATED]
    pixels = decode(path)
    if pixels is None:
        return [CORRUPT_IMAGE]
    loaded = mmcv.imread(path, color_type)
    is_kept, is_grey = color_type == 'unchanged', pixels.ndim == 2
    checks = {
        OTHER_SIZE: size is not None and loaded.shape[:2] != tuple(size),
        OTHER_CHANNELS: (1 if loaded.ndim == 2 else loaded.shape[2]) != in_channels,
        DEEP: pixels.dtype == np.uint16 and not is_kept,
        DEEP_KEPT: pixels.dtype == np.uint16 and is_kept,
        GREY: is_grey and loaded.ndim == 3,
        TRANSPARENT: not is_grey and pixels.shape[2] == 4 and not is_kept,
        CMYK: mode == 'CMYK' and loaded.ndim == 3,
    }
    return [fault for fault, is_found in checks.items() if is_found]


def find_seg_map_faults(
    entry: dict, num_classes: int | None, ignored: int | None = 255, backend: str | None = 'pillow'
) -> list[tuple[FaultType, str]]:
    """Find the faults of a segmentation map, each with its path and details.

    Args:
        entry: Data info of mmsegmentation: ``img_path``, ``seg_map_path``, ``reduce_zero_label``
            and ``label_map``.
        num_classes: Number of classes of the model, None if unknown.
        ignored: The ignored label, None if there is none.
        backend: Decoder, see :func:`mmcv.imfrombytes`; None if it is not one of mmcv.
    """
    path = entry['seg_map_path']
    if fault := find_file_fault(path):
        return [(fault, path)]
    if backend is None:
        return []
    pixels = decode(path, backend)
    if pixels is None:
        return [(BROKEN_MAP, path)]
    pixels = pixels.squeeze()
    if pixels.ndim != 2:
        return [(MAP_CHANNELS, f'{path}: {pixels.shape[-1]} channels')]
    faults = []
    size = image_size(entry.get('img_path'))
    if size not in (None, pixels.shape):
        faults.append((MAP_SIZE, f'{path}: {pixels.shape}, image: {size}'))
    if num_classes is not None:
        wrong = find_wrong_values(pixels, entry, num_classes, ignored)
        if len(wrong):
            faults.append((MAP_VALUES, f'{path}: {", ".join(map(str, wrong[:4]))}'))
    return faults


def find_wrong_values(
    pixels: np.ndarray, entry: dict, num_classes: int, ignored: int | None
) -> np.ndarray:
    """List the values in the file that have no class."""
    # Much faster than np.unique on bytes.
    is_bytes = pixels.dtype in (np.uint8, bool)
    values = np.flatnonzero(np.bincount(pixels.ravel())) if is_bytes else np.unique(pixels)
    labels = values.astype(np.int64)
    if entry.get('reduce_zero_label'):
        labels = np.where((values == 0) | (values == 255), 255, labels - 1)
    if label_map := entry.get('label_map'):
        labels = np.array([label_map.get(int(label), label) for label in labels])
    is_right = ((labels >= 0) & (labels < num_classes)) | (labels == ignored)
    # mmsegmentation converts the map to bytes, so that 256 becomes 0.
    return values[~is_right | (values > 255)]


def find_file_fault(path: str | Path) -> FaultType | None:
    """Find out whether a file is missing, or its permissions or disk forbid to read it."""
    if not os.path.isfile(path):
        return MISSING_FILE
    try:
        with open(path, 'rb') as file:
            file.read(1)
    except OSError:
        return UNREADABLE_FILE
    return None


def decode(path: str | Path, backend: str | None = None) -> np.ndarray | None:
    """Decode an image as it is, None if it is corrupt."""
    try:
        return mmcv.imread(path, 'unchanged', backend=backend)
    # What a decoder raises depends on the backend and the format.
    except Exception:
        return None


def is_huge(path: str | Path, max_pixels: int) -> bool:
    """Whether the header of an image says that it has too many pixels."""
    try:
        with Image.open(path) as image:
            return math.prod(image.size) > max_pixels
    except Image.DecompressionBombError:
        return True  # above 178 million Pillow does not return the size
    except Exception:
        return False


def image_size(path: str | None) -> tuple[int, int] | None:
    """Return the height and width that OpenCV loads, None if unreadable."""
    try:
        with Image.open(path or '') as image:
            width, height = image.size
            is_rotated = image.getexif().get(ORIENTATION, 1) > 4
            return (width, height) if is_rotated else (height, width)
    except Exception:
        return None
