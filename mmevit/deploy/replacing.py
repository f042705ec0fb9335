"""Replacing functions while a network runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class ReplaceFunctions(TorchFunctionMode):
    """Call other functions of PyTorch than the network does, in the block.

    Args:
        replacements: Functions, and methods of tensors, with their replacements.
    """

    def __init__(self, replacements: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.replacements = replacements

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.replacements.get(func, func)(*args, **(kwargs or {}))
