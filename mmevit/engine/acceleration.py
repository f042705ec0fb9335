"""Hooks for faster training: compilation and memory layout."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from packaging.version import Version

from mmevit.utils.errors import ConfigError
from mmevit.utils.models import unwrap


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the backbone with ``torch.compile`` before training.

    mmengine's own ``compile=True`` compiles whole training steps, with graph breaks at the data,
    the losses and the optimizer. The names of weights in checkpoints do not change. A second image
    size compiles once more, for any size. On a CPU the first step takes minutes::

        custom_hooks = [dict(type='CompileHook', parts=('backbone', 'neck'))]

    Args:
        parts: Names of the submodules to compile.
        **options: Arguments of :func:`torch.compile`.
    """

    # After the hooks that change or copy the model.
    priority = 'LOWEST'

    def __init__(self, parts: str | Sequence[str] = 'backbone', **options: Any) -> None:
        self.parts = [parts] if isinstance(parts, str) else parts
        self.options = options

    def before_train(self, runner: Runner) -> None:
        """Set the parts to be compiled at their first call.

        Raises:
            ConfigError: If the model has no such part, or PyTorch is too old.
        """
        if Version(torch.__version__) < Version('2.5'):
            raise ConfigError(
                f'PyTorch {torch.__version__} is too old for CompileHook: gradients of models '
                'compiled with 2.1 are wrong. Install 2.5 or newer, or remove the hook.'
            )
        model = unwrap(runner.model)
        modules = dict(model.named_modules())
        for part in self.parts:
            if part not in modules:
                raise ConfigError(
                    f'CompileHook: {type(model).__name__} has no submodule {part!r}. Set parts to '
                    'names of submodules of the model.'
                )
            modules[part].compile(**self.options)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train in the channels-last memory format.

    Convolutions are faster in it, on CPUs and in mixed precision on GPUs. Results are equal up to
    rounding; checkpoints are the same.
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the weights after they are loaded; feature maps follow their layout."""
        runner.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
