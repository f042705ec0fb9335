"""Apply the steps of test pipelines as mmcv does."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmevit.utils.errors import ConfigError
from mmevit.utils.images import pad, resize, round_up

Step = dict[str, Any]
# Values of options for resizing, the default first.
RESAMPLING = dict(backend=('cv2', 'pillow'), interpolation=('bilinear', 'bicubic'))
# The supported steps and their options.
STEPS = {
    'Resize': {'scale', 'scale_factor', 'keep_ratio', 'clip_object_border', *RESAMPLING},
    'ResizeEdge': {'scale', 'edge', 'clip_object_border', *RESAMPLING},
    'CenterCrop': {'crop_size', 'clip_object_border'},
    'Pad': {'size', 'size_divisor', 'pad_to_square', 'pad_val'},
}


def choose_steps(pipeline: Sequence[Step], can_crop: bool) -> tuple[Step, list[Step]]:
    """Return the loader of a test pipeline or {}, and its steps for images, or raise ConfigError.

    Crops are supported only where no positions are predicted.
    """
    loader, steps = {}, []
    for step in pipeline:
        kind = step['type'].rpartition('.')[2]
        step = {**step, 'type': kind}
        is_known = step.keys() - {'type'} <= STEPS.get(kind, set())
        is_known &= all(step.get(name, values[0]) in values for name, values in RESAMPLING.items())
        if kind in ('LoadImageFromFile', 'LoadReadableImage'):
            loader = step
        elif is_known and (can_crop or kind != 'CenterCrop'):
            steps.append(step)
        elif not kind.endswith('Annotations'):
            raise ConfigError(
                f'mmevit.runtime does not support the step {step} of the test pipeline. Use '
                'tools/infer.py, or export with another test pipeline.'
            )
    return loader, steps


def apply_step(step: Step, image: np.ndarray) -> np.ndarray:
    """Apply a step of :data:`STEPS` to an image (H, W, C)."""
    kind, size = step['type'], np.array(image.shape[:2])
    if kind == 'Pad':
        new = [size.max()] * 2 if step.get('pad_to_square') else (step.get('size') or size[::-1])
        divisor, value = step.get('size_divisor') or 1, step.get('pad_val', 0)
        value = value.get('img', 0) if isinstance(value, dict) else value
        return pad(image, [round_up(side, divisor) for side in new[::-1]], value)
    if kind == 'CenterCrop':
        height, width = new = np.minimum(size, np.broadcast_to(step['crop_size'], 2)[::-1])
        top, left = np.rint((size - new) / 2).astype(int)
        return image[top : top + height, left : left + width]
    if kind == 'ResizeEdge':
        edges = dict(height=0, width=1, short=size.argmin(), long=size.argmax())
        new = step['scale'] * size / size[edges[step.get('edge', 'short')]]
    else:
        factors = np.broadcast_to(step.get('scale_factor') or 1, 2)[::-1]
        if step.get('scale'):
            scale = np.broadcast_to(step['scale'], 2)[::-1]
            factors = scale / size
            if step.get('keep_ratio'):
                factors = (np.sort(scale) / np.sort(size)).min()
        new = size * factors + 0.5
    resampling = {name: step.get(name, values[0]) for name, values in RESAMPLING.items()}
    return resize(image, new.astype(int).tolist(), **resampling)
