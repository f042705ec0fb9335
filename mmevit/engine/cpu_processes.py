"""Training in several processes on CPUs, for which mmengine and PyTorch lack a few things."""

from datetime import timedelta

import torch
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce

from mmevit.utils.errors import ConfigError


def join_cpu_processes(cfg):
    """Join the processes that torchrun has started, and wrap the model so that no GPU is needed.

    mmengine's own launcher selects a GPU and wraps the model for one, even without any.

    Args:
        cfg (Config): The config, whose backend becomes gloo, and whose model gets a wrapper.

    Raises:
        ConfigError: If ``timeout`` is not a number of seconds.
    """
    settings = (cfg.get('env_cfg') or {}).get('dist_cfg') or {}
    if settings.get('backend', 'nccl') == 'nccl':
        print_log('PyTorch sees no GPU: the processes are joined by gloo rather than nccl.')
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
    """:class:`mmengine.model.MMDistributedDataParallel` whose layers of SyncBN work on CPUs.

    Args:
        module (nn.Module): The model.
        **kwargs: The other arguments of mmengine's wrapper.
    """

    def __init__(self, module, **kwargs):
        for layer in module.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = BatchNormOverProcesses
        super().__init__(module, **kwargs)


class BatchNormOverProcesses(nn.modules.batchnorm._BatchNorm):
    """What :class:`torch.nn.SyncBatchNorm` does on GPUs, for which alone PyTorch has it."""

    def forward(self, input):
        """Normalise by the statistics of all processes in training.

        Args:
            input (Tensor): (N, C, ...), where N may differ between the processes.

        Returns:
            Tensor: Of the same shape.
        """
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        # In mixed precision too, sums need the digits of float32.
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = all_reduce(values.new_tensor(input.numel() / input.size(1)))
        mean = all_reduce(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self.update_statistics(mean, variance * count / (count - 1))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def update_statistics(self, mean, variance):
        """Move the running statistics towards those of a batch.

        Args:
            mean (Tensor): (C,).
            variance (Tensor): (C,), unbiased.
        """
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input):
        """Take maps of any number of axes."""
