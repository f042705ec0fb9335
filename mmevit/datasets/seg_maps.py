"""Find faults in segmentation maps."""

import os

import mmcv
import numpy as np
from PIL import Image

from .faults import ENDS, FaultType
from .image_faults import MISSING_FILE, UNREADABLE_FILE, is_unreadable

BROKEN_MAP = FaultType('segmentation map that cannot be decoded', ENDS)
MAP_CHANNELS = FaultType('segmentation map of more than one channel', ENDS, 'fatal')
MAP_SIZE = FaultType('segmentation map of another size than its image', ENDS)
MAP_VALUES = FaultType('segmentation map with values beyond the classes', ENDS, 'fatal')
ORIENTATION = 0x0112  # the EXIF tag; from 5 on height and width are swapped


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

    Example:
        >>> find_seg_map_faults(dict(seg_map_path='no/such.png'), 2)[0][0].name
        'missing file'
    """
    path = entry['seg_map_path']
    if not os.path.isfile(path):
        return [(MISSING_FILE, path)]
    if is_unreadable(path):
        return [(UNREADABLE_FILE, path)]
    if backend is None:
        return []
    try:
        pixels = mmcv.imread(path, 'unchanged', backend=backend).squeeze()
    # What a decoder raises depends on the backend and the format.
    except Exception:
        return [(BROKEN_MAP, path)]
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
    # mmsegmentation converts the map to bytes, so that 256 becomes 0.
    is_right = (labels >= 0) & (labels < num_classes) & (values < 256)
    return values[~(is_right | ((labels == ignored) & (values < 256)))]


def image_size(path: str | None) -> tuple[int, int] | None:
    """Return the height and width that OpenCV loads, None if unreadable."""
    try:
        with Image.open(path or '') as image:
            width, height = image.size
            is_rotated = image.getexif().get(ORIENTATION, 1) > 4
            return (width, height) if is_rotated else (height, width)
    except Exception:
        return None
