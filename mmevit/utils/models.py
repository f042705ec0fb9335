"""Functions for models of any library."""

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed wrapper, or the model itself."""
    wrapped: Any = model
    return wrapped.module if is_model_wrapper(model) else model
