"""Read images, and apply the steps of test pipelines as mmcv does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmevit.utils.errors import ConfigError, UserError, one_line

Step = dict[str, Any]
Size = Sequence[int]  # height and width
LOADERS = ('LoadImageFromFile', 'LoadReadableImage')
# Backends and interpolations of resizing.
RESAMPLING = [(a, b) for a in ('cv2', 'pillow') for b in ('bilinear', 'bicubic')]
RESIZING = {'backend', 'interpolation', 'clip_object_border'}
# The supported steps and their options.
STEPS = {
    'Resize': {'scale', 'scale_factor', 'keep_ratio', *RESIZING},
    'ResizeEdge': {'scale', 'edge', *RESIZING},
    'CenterCrop': {'crop_size', 'clip_object_border'},
    'Pad': {'size', 'size_divisor', 'pad_to_square', 'pad_val'},
}


def choose_steps(pipeline: Sequence[Step]) -> tuple[Step, list[Step]]:
    """Return the loader of a test pipeline, empty if it has none, and its steps for images.

    Raises:
        ConfigError: If a step is not supported.
    """
    loader, steps = {}, []
    for step in pipeline:
        step = {**step, 'type': step['type'].rpartition('.')[2]}
        kind = step['type']
        resampling = step.get('backend', 'cv2'), step.get('interpolation', 'bilinear')
        if kind in LOADERS:
            loader = step
        elif step.keys() - {'type'} <= STEPS.get(kind, set()) and resampling in RESAMPLING:
            steps.append(step)
        elif not kind.endswith('Annotations'):
            raise ConfigError(
                f'mmevit.runtime does not support the step {step} of the test pipeline. Use '
                'tools/infer.py, or export with another test pipeline.'
            )
    return loader, steps


def read_image(path: str | Path, loader: Step) -> np.ndarray:
    """Read an image as BGR (H, W, 3), or for ``grayscale`` (H, W, 1), uint8.

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
                canvas = Image.new('RGBA', image.size, (124, 117, 104, 255))
                image = Image.alpha_composite(canvas, image.convert('RGBA'))
            if flag != 'unchanged':
                image = image.convert('L' if flag.startswith('grayscale') else 'RGB')
            array = np.atleast_3d(np.asarray(image))
            return np.concatenate([array[..., 2::-1], array[..., 3:]], axis=2)
    # What a decoder raises depends on the format.
    except Exception as error:
        raise UserError(f'{path} cannot be decoded ({one_line(error)}). Replace it.') from error


def apply(step: Step, image: np.ndarray) -> np.ndarray:
    """Apply a step of :data:`STEPS` to an image (H, W, C)."""
    height, width = size = image.shape[:2]
    if step['type'] == 'Pad':
        size = [max(size)] * 2 if step.get('pad_to_square') else (step.get('size') or size[::-1])
        divisor, value = step.get('size_divisor') or 1, step.get('pad_val', 0)
        value = value.get('img', 0) if isinstance(value, dict) else value
        return pad(image, [-(-side // divisor) * divisor for side in size[::-1]], value)
    if step['type'] == 'CenterCrop':
        crop = [min(pair) for pair in zip(size, as_pair(step['crop_size'])[::-1], strict=True)]
        top, left = (round((old - new) / 2) for old, new in zip(size, crop, strict=True))
        return image[top : top + crop[0], left : left + crop[1]]
    if step['type'] == 'ResizeEdge':
        scale, edge = step['scale'], step.get('edge', 'short')
        if dict(short=width < height, long=width > height, width=True, height=False)[edge]:
            size = int(scale * height / width), scale
        else:
            size = scale, int(scale * width / height)
    else:
        factors = as_pair(step.get('scale_factor') or 1)
        if step.get('scale'):
            scale = as_pair(step['scale'])
            factors = scale[0] / width, scale[1] / height
            if step.get('keep_ratio'):
                factors = (min(max(scale) / max(size), min(scale) / min(size)),) * 2
        size = int(height * factors[1] + 0.5), int(width * factors[0] + 0.5)
    return resize(image, size, step.get('backend', 'cv2'), step.get('interpolation', 'bilinear'))


def as_pair(value: Any) -> Sequence:
    """Return a pair of numbers, given one or two."""
    return value if isinstance(value, Sequence) else (value, value)


def resize(image: np.ndarray, size: Size, backend: str, interpolation: str) -> np.ndarray:
    """Resize an image like ``mmcv.imresize()``.

    ``bilinear`` is exact for uint8; in ``bicubic``, cv2 may round single values differently.
    """
    if backend == 'pillow':
        method = Image.Resampling[interpolation.upper()]
        image = image[..., 0] if image.shape[2] == 1 else image
        return np.atleast_3d(Image.fromarray(image).resize(size[::-1], method))
    if image.shape[:2] == tuple(size):
        return image
    is_fixed = image.dtype == np.uint8 and interpolation == 'bilinear'
    if is_fixed and image.shape[:2] == (2 * size[0], 2 * size[1]):  # cv2 takes the mean
        quads = image.reshape(size[0], 2, size[1], 2, -1).astype(np.uint16)
        return ((quads.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)
    (rows, row_weights), (columns, weights) = (
        find_taps(old, new, interpolation) for old, new in zip(image.shape, size, strict=False)
    )
    if not is_fixed:
        wide = sum(image[:, i] * w[:, None] for i, w in zip(columns, weights, strict=True))
        result = sum(wide[i] * w[:, None, None] for i, w in zip(rows, row_weights, strict=True))
        return np.rint(result).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else result
    # Fixed-point numbers: weights of 11 bits, of which cv2 drops 4, then 16, then 2.
    row_weights, weights = (np.rint(w * 2048).astype(np.int32) for w in (row_weights, weights))
    wide = sum(image[:, i] * w[:, None] for i, w in zip(columns, weights, strict=True)) >> 4
    parts = (wide[i] * w[:, None, None] >> 16 for i, w in zip(rows, row_weights, strict=True))
    return ((sum(parts) + 2) >> 2).astype(np.uint8)


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
    """Pad an image (H, W, C) at the bottom and right to at least a size."""
    height, width, channels = image.shape
    shape = max(height, size[0]), max(width, size[1]), channels
    padded = np.broadcast_to(np.asarray(value, image.dtype), shape).copy()
    padded[:height, :width] = image
    return padded
