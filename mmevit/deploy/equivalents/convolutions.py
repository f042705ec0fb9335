"""Equivalents of deformable convolutions: bilinear sampling and a 1x1 convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import DeformConv2d
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample
from torch.nn.modules.utils import _pair


def deform_conv2d(input: Tensor, offset: Tensor, weight: Tensor, *options: Any) -> Tensor:
    """Apply a deformable convolution without a mask, see the function of mmcv.

    The options from the sixth on, a bias that mmcv does not support and the batch size of its
    implementation, are not used.
    """
    return modulated_deform_conv2d(input, offset, None, weight, None, *options[:5])


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Apply a deformable convolution, see the function of mmcv."""
    num, channels, height, width = input.shape
    kernel, size = weight.shape[2:], offset.shape[2:]
    taps = kernel.numel()
    # (N * groups, taps, 2, H, W): offsets as y, x.
    y, x = offset.reshape(num * deform_groups, taps, 2, *size).unbind(dim=2)
    rows, columns = (
        step * torch.arange(length, device=input.device)
        + (spread * torch.arange(count, device=input.device))[:, None]
        - border
        for step, border, spread, length, count in zip(
            _pair(stride), _pair(padding), _pair(dilation), size, kernel, strict=True
        )
    )
    y = y + rows.repeat_interleave(kernel[1], dim=0)[:, :, None]
    x = x + columns.repeat(kernel[0], 1)[:, None]
    # Pixel 0 is centered at -1 + 1 / width.
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    maps = input.reshape(num * deform_groups, channels // deform_groups, height, width)
    sampled = grid_sample(maps, grid.flatten(1, 2), align_corners=False)
    if mask is not None:
        sampled = sampled * mask.reshape(num * deform_groups, 1, taps * size[0], size[1])
    sampled = sampled.reshape(num, channels * taps, *size)
    return conv2d(sampled, weight.reshape(weight.shape[0], -1, 1, 1), bias, groups=groups)


def convolve(self: DeformConv2d, x: Tensor, offset: Tensor) -> Tensor:
    """Run the layer without padding small maps, see ``DeformConv2d.forward()``."""
    return deform_conv2d(
        x,
        offset,
        self.weight,
        self.stride,
        self.padding,
        self.dilation,
        self.groups,
        self.deform_groups,
    )


FUNCTIONS = dict(
    deform_conv2d=deform_conv2d,
    modulated_deform_conv2d=modulated_deform_conv2d,
)
METHODS = [(DeformConv2d, 'forward', convolve)]
