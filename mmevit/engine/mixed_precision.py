"""Mixed precision in bfloat16, which CPUs have too, as a wrapper of any optimizer."""

import contextlib

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast

from mmevit.utils.configs import type_name

# What stands in on a CPU for the wrappers that scale the loss, which mmengine allows on GPUs alone.
CPU_WRAPPERS = dict(
    AmpOptimWrapper='Bfloat16OptimWrapper',
    AdaptiveClipAmpOptimWrapper='AdaptiveClipBfloat16OptimWrapper',
)


def train_in_bfloat16(cfg):
    """Have a config that trains in mixed precision do so on a CPU, in bfloat16.

    Args:
        cfg (Config): The config, whose ``optim_wrapper`` is changed if it is one for a GPU.

    Example:
        >>> from mmengine.config import Config
        >>> cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic')))
        >>> train_in_bfloat16(cfg)
        >>> cfg.optim_wrapper
        {'type': 'Bfloat16OptimWrapper'}
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) in CPU_WRAPPERS:
        wrapper.type = CPU_WRAPPERS[type_name(wrapper)]
        wrapper.pop('dtype', None)
        wrapper.pop('loss_scale', None)


@OPTIM_WRAPPERS.register_module()
class Bfloat16OptimWrapper(OptimWrapper):
    """:class:`mmengine.optim.OptimWrapper` whose forward pass is in mixed precision, in bfloat16.

    For CPUs and GPUs. Unlike float16, bfloat16 has the range of float32, so that no gradient
    vanishes and no loss needs to be scaled::

        optim_wrapper = dict(type='Bfloat16OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))

    Args:
        **kwargs: The arguments of :class:`mmengine.optim.OptimWrapper`.
    """

    @contextlib.contextmanager
    def optim_context(self, model):
        """Compute in bfloat16 what PyTorch's autocast does, inside this context.

        Args:
            model (nn.Module): The model.
        """
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
