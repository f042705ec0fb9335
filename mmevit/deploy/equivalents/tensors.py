"""Functions of PyTorch, where image sizes are tensors and all sizes are dynamic."""

from typing import Any

import torch
from torch import Tensor


def deepcopy(tensor: Tensor, memo: Any) -> Tensor:
    """Copy a tensor that is not a leaf, such as an image size in a data sample."""
    return tensor.clone()


def contiguous(tensor: Tensor, memory_format: Any = torch.contiguous_format) -> Tensor:
    """Copy a tensor. Whether it is contiguous depends on the size of the batch."""
    return tensor.clone(memory_format=memory_format)


def cat(tensors: list[Tensor] | tuple[Tensor, ...], dim: int = 0) -> Tensor:
    """Join tensors, maps in the precision of the first one.

    SOLOv2 joins maps, which may be in half precision, with coordinates in float32.
    """
    first = tensors[0]
    if first.is_floating_point():
        tensors = [part if part.dtype == first.dtype else part.to(first.dtype) for part in tensors]
    return torch.cat(tensors, dim)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve maps; with 1x1 kernels for each object by a matrix product.

    OpenVINO cannot load int8 files in which the kernels of such a convolution are computed.
    """
    is_general = groups == 1 or weight.shape[2:] != (1, 1) or stride != 1
    if is_general or bias is None or input.shape[0] != 1:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    maps = input.reshape(groups, -1, input.shape[2] * input.shape[3])
    maps = weight.reshape(groups, -1, maps.shape[1]) @ maps + bias.reshape(groups, -1, 1)
    return maps.reshape(1, -1, *input.shape[2:])


def linspace(start: float, end: float, steps: int, **kwargs: Any) -> Tensor:
    """Return evenly spaced numbers without fixing ``steps``, whose distance is then 1."""
    if isinstance(steps, int):
        return torch.linspace(start, end, steps, **kwargs)
    return torch.arange(steps, **kwargs) + start


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Clamp values; ``max`` may be a tensor and ``min`` a number."""
    if not isinstance(max, Tensor):
        return input.clamp(min, max)
    values = input if min is None else input.clamp(min=min)
    return torch.minimum(values, max)


def clamp_(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Clamp values in place."""
    return input.copy_(clamp(input, min, max))


FUNCTIONS = {
    Tensor.__deepcopy__: deepcopy,
    Tensor.contiguous: contiguous,
    Tensor.clamp: clamp,
    Tensor.clamp_: clamp_,
    torch.clamp: clamp,
    torch.linspace: linspace,
    torch.cat: cat,
    torch.conv2d: convolve,
}
