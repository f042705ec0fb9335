"""Equivalents of functions and methods of mmdet that torch.export does not support.

Every result has a fixed number of rows, where mmdet's depends on the data. Additional rows have
score 0 and come last. The image sizes of data samples are tensors.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from ..replacing import ReplaceFunctions
from . import boxes, convolutions, masks, one_stage, panoptic, rois, tensors, transformers

# Functions by name, which are replaced in every module that imports them.
FUNCTIONS = {
    **boxes.FUNCTIONS,
    **convolutions.FUNCTIONS,
    **masks.FUNCTIONS,
    **one_stage.FUNCTIONS,
    **rois.FUNCTIONS,
}
# A class, the name of a method, and its equivalent.
METHODS: list[tuple[Any, str, Any]] = [
    *convolutions.METHODS,
    *masks.METHODS,
    *one_stage.METHODS,
    *panoptic.METHODS,
    *rois.METHODS,
    *transformers.METHODS,
]


@contextmanager
def exportable_operators() -> Iterator[None]:
    """Replace functions and methods of PyTorch, mmcv and mmdet by their equivalents."""
    with ExitStack() as stack:
        for owner, name, replacement in [*METHODS, *find_functions()]:
            stack.enter_context(patch.object(owner, name, replacement, create=True))
        stack.enter_context(ReplaceFunctions(tensors.FUNCTIONS))
        yield


@cache
def find_functions() -> list[tuple[Any, str, Any]]:
    """Return the modules of mmcv and mmdet that import a function, its name and its equivalent."""
    return [
        (module, name, function)
        for path, module in sys.modules.items()
        if path.startswith(('mmcv.ops', 'mmdet.models'))
        for name, function in FUNCTIONS.items()
        if hasattr(module, name)
    ]
