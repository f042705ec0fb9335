"""Mixed precision in bfloat16, which CPUs support too."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn

from mmevit.utils.configs import type_name

# Replacements on CPUs, where mmengine does not support loss scaling.
CPU_WRAPPERS = dict(
    AmpOptimWrapper='Bfloat16OptimWrapper',
    AdaptiveClipAmpOptimWrapper='AdaptiveClipBfloat16OptimWrapper',
)


def train_in_bfloat16(cfg: Config) -> None:
    """Replace an optimizer wrapper with loss scaling in a config by one for bfloat16.

    Example:
        >>> from mmengine.config import Config
        >>> cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic')))
        >>> train_in_bfloat16(cfg)
        >>> cfg.optim_wrapper
        {'type': 'Bfloat16OptimWrapper'}
    """
    wrapper: Any = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) in CPU_WRAPPERS:
        wrapper.type = CPU_WRAPPERS[type_name(wrapper)]
        wrapper.pop('dtype', None)
        wrapper.pop('loss_scale', None)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """:class:`mmengine.optim.OptimWrapper` with mixed precision in bfloat16.

    For CPUs and GPUs. bfloat16 has the range of float32, so no loss scaling is needed::

        optim_wrapper = dict(type='Bfloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enable autocast to bfloat16 for the forward pass."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
