"""Equivalents of functions and methods of mmdet that torch.export does not support.

Every result has a fixed number of rows, where mmdet's depends on the data. Additional rows have
score 0 and come last.
"""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import boxes, convolutions, masks, one_stage, panoptic, rois, transformers

MODULES: tuple[Any, ...] = (boxes, convolutions, masks, one_stage, panoptic, rois, transformers)


@contextmanager
def exportable_operators() -> Iterator[None]:
    """Replace functions and methods of mmdet by their equivalents in the block."""
    with ExitStack() as stack:
        for owner, name, replacement in find_replacements():
            stack.enter_context(patch.object(owner, name, replacement, create=True))
        stack.enter_context(TensorLimits())
        yield


@cache
def find_replacements() -> list[tuple[Any, str, Any]]:
    """Return methods of mmdet's classes, and functions in every module that imports them."""
    modules = [module for name, module in sys.modules.items() if name.startswith('mmdet.models')]
    functions = [
        (module, name, function)
        for equivalents in MODULES
        for name, function in getattr(equivalents, 'FUNCTIONS', {}).items()
        for module in modules
        if hasattr(module, name)
    ]
    methods = [method for equivalents in MODULES for method in equivalents.METHODS]
    return functions + methods


class TensorLimits(TorchFunctionMode):
    """Support image sizes that are tensors: clamping to them, and copying them.

    Also copy instead of finding out what is contiguous, which depends on the size of the batch, and
    support ``torch.linspace()`` with a dynamic number of steps, if they are 1 as in mmdet.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__deepcopy__:  # by data samples
            return args[0].clone()
        if func is Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        if func is torch.linspace:
            start, _, steps = args
            return torch.arange(steps, **kwargs) + start
        if func in (Tensor.clamp_, Tensor.clamp, torch.clamp):
            limit = kwargs.get('max')
            if isinstance(limit, Tensor):
                values = args[0].clamp(min=kwargs['min']) if 'min' in kwargs else args[0]
                values = torch.minimum(values, limit)
                return args[0].copy_(values) if func is Tensor.clamp_ else values
        return func(*args, **kwargs)
