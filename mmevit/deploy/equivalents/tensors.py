"""Functions of PyTorch, where image sizes are tensors and all sizes are dynamic."""

from typing import Any

import torch
from torch import Tensor


def deepcopy(tensor: Tensor, memo: Any) -> Tensor:
    """Copy a tensor that is not a leaf, such as an image size in a data sample."""
    return tensor.clone()


def contiguous(tensor: Tensor) -> Tensor:
    """Copy a tensor. Whether it is contiguous depends on the size of the batch."""
    return tensor.clone(memory_format=torch.contiguous_format)


def linspace(start: float, end: float, steps: int, **kwargs: Any) -> Tensor:
    """Return numbers whose distance is 1, as in mmdet, without fixing ``steps``."""
    return torch.arange(steps, **kwargs) + start


def clamp(values: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Clamp values; ``max`` may be a tensor and ``min`` a number."""
    if not isinstance(max, Tensor):
        return values.clamp(min, max)
    values = values if min is None else values.clamp(min=min)
    return torch.minimum(values, max)


def clamp_(values: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Clamp values in place."""
    return values.copy_(clamp(values, min, max))


FUNCTIONS = {
    Tensor.__deepcopy__: deepcopy,
    Tensor.contiguous: contiguous,
    Tensor.clamp: clamp,
    Tensor.clamp_: clamp_,
    torch.clamp: clamp,
    torch.linspace: linspace,
}
