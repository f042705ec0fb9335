"""Faults in segmentation maps, and what becomes of them in training."""

import os

import mmcv
import numpy as np
from PIL import Image

from .faults import CLOSED_FILE, MISSING_FILE, Kind, is_closed

ENDS = 'ends training'
BROKEN_MAP = Kind('segmentation map that cannot be decoded', ENDS)
MAP_CHANNELS = Kind('segmentation map of more than one channel', ENDS, 'fatal')
MAP_SIZE = Kind('segmentation map of another size than its image', ENDS)
MAP_VALUES = Kind('segmentation map with values beyond the classes', ENDS, 'fatal')
ORIENTATION = 0x0112  # the EXIF tag; from 5 on height and width are swapped


def find_seg_map_faults(
    entry: dict, num_classes: int | None, ignored: int | None = 255, backend: str | None = 'pillow'
) -> list[tuple[Kind, str]]:
    """Find what is wrong with a segmentation map.

    Args:
        entry: What mmsegmentation's data sets tell of an image: ``img_path``, ``seg_map_path``,
            ``reduce_zero_label`` and ``label_map``.
        num_classes: Number of classes of the model, None if it is unknown.
        ignored: The label that is ignored, None if none is.
        backend: What decodes the map, see :func:`mmcv.imfrombytes`; None if mmcv does not.

    Returns:
        What is, each with the path of the map and, of values, the first ones; none if nothing.

    Example:
        >>> find_seg_map_faults(dict(seg_map_path='no/such.png'), 2)[0][0].name
        'file that is missing'
    """
    path = entry['seg_map_path']
    if not os.path.isfile(path):
        return [(MISSING_FILE, path)]
    if is_closed(path):
        return [(CLOSED_FILE, path)]
    if backend is None:
        return []
    try:
        pixels = mmcv.imread(path, 'unchanged', backend=backend).squeeze()
    # What a decoder raises at hostile bytes depends on the backend and the format.
    except Exception:
        return [(BROKEN_MAP, path)]
    if pixels.ndim != 2:
        return [(MAP_CHANNELS, f'{path}: {pixels.shape[-1]} channels')]
    faults = []
    size = image_size(entry.get('img_path'))
    if size not in (None, pixels.shape):
        faults.append((MAP_SIZE, f'{path}: {pixels.shape}, image: {size}'))
    if num_classes is not None:
        wrong = wrong_values(pixels, entry, num_classes, ignored)
        if len(wrong):
            faults.append((MAP_VALUES, f'{path}: {", ".join(map(str, wrong[:4]))}'))
    return faults


def wrong_values(
    pixels: np.ndarray, entry: dict, num_classes: int, ignored: int | None
) -> np.ndarray:
    """List the values for which there is no class, as they stand in the file."""
    # Much faster than np.unique on bytes.
    is_bytes = pixels.dtype in (np.uint8, bool)
    values = np.flatnonzero(np.bincount(pixels.ravel())) if is_bytes else np.unique(pixels)
    labels = values.astype(np.int64)
    if entry.get('reduce_zero_label'):
        labels = np.where((values == 0) | (values == 255), 255, labels - 1)
    if label_map := entry.get('label_map'):
        labels = np.array([label_map.get(int(label), label) for label in labels])
    # mmsegmentation makes bytes of all, so that 256 becomes 0.
    is_right = (labels >= 0) & (labels < num_classes) & (values < 256)
    return values[~(is_right | ((labels == ignored) & (values < 256)))]


def image_size(path: str | None) -> tuple[int, int] | None:
    """Height and width of an image as OpenCV turns it, None if it cannot be read."""
    try:
        with Image.open(path) as image:
            is_turned = image.getexif().get(ORIENTATION, 1) > 4
            return image.size if is_turned else image.size[::-1]
    except Exception:
        return None
