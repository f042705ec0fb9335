"""Complete segmentors of mmsegmentation, with equivalents of what torch.export does not support."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from mmseg.models.utils import Upsample
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, linear
from torch.nn.modules.utils import _pair

from mmevit.utils.errors import ConfigError

from .networks import Exportable, share_of_other_pixels
from .replacing import ReplaceFunctions


class Segmentor(Exportable):
    """Map normalized images (N, C, H, W) to the classes of their pixels (N, H, W), int64.

    Raises:
        ConfigError: If the model segments images in parts.
    """

    task = 'semantic-segmentation'
    output_names = ('segments',)
    tolerance = 1e-3
    unit = 'of the pixels'

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if model.test_cfg.mode != 'whole':
            raise ConfigError(
                f'Models with test_cfg.mode={model.test_cfg.mode!r} cannot be exported. Set '
                "model.test_cfg to dict(mode='whole')."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Segment images."""
        size = images.shape[2:]
        with ReplaceFunctions(FUNCTIONS), patch.object(Upsample, 'forward', upsample):
            logits = self.model.encode_decode(images, [dict(img_shape=size, pad_shape=size)])
        if logits.shape[1] == 1:
            return (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()
        return logits.argmax(dim=1)

    def predict_with_library(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the segments of the model's own predictions."""
        return (torch.cat([sample.pred_sem_seg.data for sample in self.model.predict(images)]),)

    def measure_difference(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """Return the share of different pixels."""
        return share_of_other_pixels(outputs[0], expected[0])


def upsample(self: Upsample, x: Tensor) -> Tensor:
    """Resize maps (N, C, H, W), see ``Upsample.forward()``, by an integer factor."""
    factor: Any = self.scale_factor
    size = self.size or [side * int(factor) for side in x.shape[2:]]
    return interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def pool(maps: Tensor, num_bins: int | Sequence[int]) -> Tensor:
    """Average maps (N, C, H, W) of any size in bins."""
    num_bins = _pair(num_bins)
    if num_bins == (1, 1):
        return adaptive_avg_pool2d(maps, num_bins)
    sides = zip(maps.shape[2:], num_bins, strict=True)
    rows, columns = (pooling_matrix(side, count).to(maps) for side, count in sides)
    pooled = linear(maps, columns).transpose(2, 3)
    # Without a copy, torch.export would need maps of more than one row.
    pooled = pooled.clone(memory_format=torch.contiguous_format)
    return linear(pooled, rows).transpose(2, 3)


def pooling_matrix(size: int, num_bins: int) -> Tensor:
    """Return the weights (num_bins, size) with which pixels count in bins.

    Example:
        >>> pooling_matrix(3, 2)
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]])
    """
    bins, pixels = torch.arange(num_bins)[:, None], torch.arange(size)
    start, end = bins * size // num_bins, -(-(bins + 1) * size // num_bins)
    is_inside = ((pixels >= start) & (pixels < end)).float()
    return is_inside / (end - start)


FUNCTIONS = {adaptive_avg_pool2d: pool}
