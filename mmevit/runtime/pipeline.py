"""Apply the steps of test pipelines as mmcv does."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmevit.utils.errors import ConfigError
from mmevit.utils.images import pad, resize

Step = dict[str, Any]
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


def choose_steps(pipeline: Sequence[Step], can_crop: bool) -> tuple[Step, list[Step]]:
    """Return the loader of a test pipeline, empty if it has none, and its steps for images.

    Raises:
        ConfigError: If a step is not supported. Crops are, where no positions are predicted.
    """
    loader, steps = {}, []
    for step in pipeline:
        step = {**step, 'type': step['type'].rpartition('.')[2]}
        kind = step['type']
        resampling = step.get('backend', 'cv2'), step.get('interpolation', 'bilinear')
        if kind in LOADERS:
            loader = step
        elif (
            step.keys() - {'type'} <= STEPS.get(kind, set())
            and resampling in RESAMPLING
            and (can_crop or kind != 'CenterCrop')
        ):
            steps.append(step)
        elif not kind.endswith('Annotations'):
            raise ConfigError(
                f'mmevit.runtime does not support the step {step} of the test pipeline. Use '
                'tools/infer.py, or export with another test pipeline.'
            )
    return loader, steps


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
