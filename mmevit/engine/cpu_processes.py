"""Distributed training on CPUs, which mmengine and PyTorch support only in part."""

from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce

from mmevit.utils.errors import ConfigError


def init_cpu_process_group(cfg: Config) -> None:
    """Initialize the process group of torchrun with gloo, and set a model wrapper for CPUs.

    mmengine's own launcher selects a GPU and wraps the model for one, even without any.
    """
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    if settings.get('backend', 'nccl') == 'nccl':
        print_log('No GPU is available. The backend is gloo instead of nccl.')
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    options = dict(cfg.env_cfg.dist_cfg)
    options.pop('init_backend', None)  # of mmengine, not of PyTorch
    if options.get('timeout') is not None:
        try:
            options['timeout'] = timedelta(seconds=options['timeout'])
        except TypeError as error:
            raise ConfigError(
                f'env_cfg.dist_cfg.timeout is {options["timeout"]!r}. Give a number of seconds.'
            ) from error
    distributed.init_process_group(**options)
    wrapper = dict(
        type='CPUDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.setdefault('model_wrapper_cfg', wrapper)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """:class:`mmengine.model.MMDistributedDataParallel` that supports SyncBN on CPUs."""

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = CPUSyncBatchNorm  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(module, **kwargs)


# Not a subclass of SyncBatchNorm, which DistributedDataParallel rejects on CPUs.
class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """:class:`torch.nn.SyncBatchNorm` for CPUs; PyTorch's own runs on GPUs only."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) by the statistics of all processes; N may differ between them."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        # Sums in float32, in mixed precision too.
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = all_reduce(values.new_tensor(input.numel() / input.size(1)))
        mean = all_reduce(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            # The unbiased variance.
            self.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept inputs of any number of dimensions."""
