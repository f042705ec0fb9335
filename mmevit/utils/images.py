"""Read, resize and pad images as mmcv does, and choose colors, with NumPy and Pillow."""

import colorsys
import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError, one_line

Size = Sequence[int]  # height and width


def read_image(path: str | Path, loader: dict[str, Any]) -> np.ndarray:
    """Read an image as BGR (H, W, 3), or for ``grayscale`` (H, W, 1), uint8.

    ``loader`` has the arguments of mmcv's ``LoadImageFromFile``.

    Raises:
        UserError: If it cannot be decoded.
    """
    flag, by_pillow = loader.get('color_type', 'color'), loader.get('imdecode_backend') == 'pillow'
    try:
        with Image.open(path) as image:
            if flag.startswith('grayscale') and not by_pillow:
                image.draft('L', image.size)  # as stored in JPEG files, without conversion
            if flag in ('color', 'grayscale'):
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I'):  # 16 bits
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == 'LA' and by_pillow:  # mmcv has this background
                rgba, image = image.convert('RGBA'), Image.new('RGB', image.size, (124, 117, 104))
                image.paste(rgba, mask=rgba.getchannel('A'))
            if flag != 'unchanged':
                image = image.convert('L' if flag.startswith('grayscale') else 'RGB')
            array = np.atleast_3d(np.asarray(image))
            return np.concatenate([array[..., 2::-1], array[..., 3:]], axis=2)
    # What a decoder raises depends on the format.
    except Exception as error:
        raise UserError(f'{path} cannot be decoded ({one_line(error)}). Replace it.') from error


def resize(image: np.ndarray, size: Size, backend: str, interpolation: str) -> np.ndarray:
    """Resize an image like ``mmcv.imresize()``.

    ``bilinear`` is exact for uint8; in ``bicubic``, cv2 may round differently.
    """
    if backend == 'pillow':
        method = Image.Resampling[interpolation.upper()]
        image = image[..., 0] if image.shape[2] == 1 else image
        return np.atleast_3d(np.asarray(Image.fromarray(image).resize((size[1], size[0]), method)))
    if image.shape[:2] == tuple(size):
        return image
    is_fixed = image.dtype == np.uint8 and interpolation == 'bilinear'
    if is_fixed and image.shape[:2] == (2 * size[0], 2 * size[1]):  # cv2 takes the mean
        pairs = np.add(image[::2], image[1::2], dtype=np.uint16)
        # Each channel on its own: NumPy is slow if the last axis is as short as this one.
        quads = [pairs[:, ::2, c] + pairs[:, 1::2, c] for c in range(image.shape[2])]
        return ((np.stack(quads, axis=2) + 2) >> 2).astype(np.uint8)
    (rows, row_weights), (columns, weights) = (
        find_taps(old, new, interpolation) for old, new in zip(image.shape, size, strict=False)
    )
    # The other rows of a much larger image are not resized along the columns.
    used, inverse = np.unique(rows, return_inverse=True)
    image, rows = image[used], inverse.reshape(rows.shape)
    if not is_fixed:
        wide = add(image[:, i] * w[:, None] for i, w in zip(columns, weights, strict=True))
        result = add(wide[i] * w[:, None, None] for i, w in zip(rows, row_weights, strict=True))
        return np.rint(result).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else result
    # Fixed-point numbers: weights of 11 bits, of which cv2 drops 4, then 16, then 2.
    row_weights, weights = (np.rint(w * 2048).astype(np.int32) for w in (row_weights, weights))
    wide = add(image[:, i] * w[:, None] for i, w in zip(columns, weights, strict=True)) >> 4
    parts = (wide[i] * w[:, None, None] >> 16 for i, w in zip(rows, row_weights, strict=True))
    return ((add(parts) + 2) >> 2).astype(np.uint8)


def add(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Add up arrays."""
    return functools.reduce(operator.add, arrays)


def find_taps(old: int, new: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that cv2 adds up along an axis, (taps, new), and their float32 weights."""
    position = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    t = position - first.astype(np.float32)
    index, weights = [first, first + 1], [1 - t, t]
    if interpolation == 'bicubic':
        before = ((-0.75 * (t + 1) + 3.75) * (t + 1) - 6) * (t + 1) + 3
        inner = [(1.25 * x - 2.25) * x * x + 1 for x in (t, 1 - t)]
        index = [first - 1, *index, first + 2]
        weights = [before, *inner, 1 - before - sum(inner)]
    return np.clip(index, 0, old - 1), np.stack(weights)


def pad(image: np.ndarray, size: Size, value: Any) -> np.ndarray:
    """Pad an image (H, W, C) at the bottom and right to at least a size; no copy if it has it."""
    height, width, channels = image.shape
    shape = max(height, size[0]), max(width, size[1]), channels
    if shape == image.shape:
        return image
    padded = np.broadcast_to(np.asarray(value, image.dtype), shape).copy()
    padded[:height, :width] = image
    return padded


def batch_by_shape(
    pairs: Iterable[tuple[Any, np.ndarray]], batch_size: int
) -> Iterator[tuple[tuple, tuple[np.ndarray, ...]]]:
    """Yield the keys and the images of consecutive pairs with images of the same shape.

    Raises:
        UserError: If the batch size is less than 1.
    """
    if batch_size < 1:
        raise UserError(f'batch_size is {batch_size}, but must be 1 or more.')
    for _, group in groupby(pairs, key=lambda pair: pair[1].shape):
        while batch := list(islice(group, batch_size)):
            keys, images = zip(*batch, strict=True)
            yield keys, images


def round_up(side: int, divisor: int) -> int:
    """Return the next multiple of a divisor.

    Example:
        >>> round_up(33, 32), round_up(32, 32)
        (64, 32)
    """
    return -(-side // divisor) * divisor


def choose_color(number: int) -> tuple[int, ...]:
    """Return the color of a label or another number, RGB; those of near numbers differ."""
    return tuple(int(255 * x) for x in colorsys.hsv_to_rgb(number * 0.618 % 1, 0.8, 1))
