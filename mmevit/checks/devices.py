"""Check that the GPUs, processes and number types of a config are available."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError


def check_device(cfg: Config) -> None:
    """Raise ConfigError if a requested GPU does not exist."""
    launcher = cfg.get('launcher', 'none')
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun has started. Use '
            'tools/dist_train.sh or tools/dist_test.sh, or omit it to run in one process.'
        )
    if get_device() == 'cpu':
        check_cpu(launcher)
    elif launcher == 'pytorch' and get_device() == 'cuda':
        rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if rank >= count:
            raise ConfigError(
                f'Process {rank} of this machine needs GPU {rank}, but PyTorch finds {count} GPUs. '
                'Start at most one process per GPU.'
            )


def check_cpu(launcher: str) -> None:
    """Raise ConfigError if a GPU is requested, since there is none."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if visible not in ('', '-1'):
        raise ConfigError(
            f'CUDA_VISIBLE_DEVICES={visible} requests a GPU, but PyTorch finds none. Check the '
            'driver and that PyTorch was built for CUDA, or unset it to run on the CPU.'
        )
    if launcher in ('slurm', 'mpi'):
        raise ConfigError(
            f'--launcher {launcher} needs GPUs, but PyTorch finds none. Run without a launcher, '
            'or in several CPU processes with tools/dist_train.sh.'
        )


def check_mixed_precision(cfg: Config) -> None:
    """Raise ConfigError if a config cannot be trained in mixed precision on this CPU.

    CPUs only support bfloat16, and of detectors only those with one stage.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    dtype = str(wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    mixed = ('AmpOptimWrapper', 'Bfloat16OptimWrapper')
    if get_device() != 'cpu' or not type_name(wrapper).endswith(mixed):
        return
    if cfg.model.get('roi_head'):
        raise ConfigError(
            f'{type_name(cfg.model)} has two stages, for which mmcv has no bfloat16 operators on a '
            'CPU. Disable mixed precision (--amp), or train on a GPU.'
        )
    if dtype != 'bfloat16':
        raise ConfigError(
            f'optim_wrapper.dtype is {dtype}, but PyTorch finds no GPU, and mixed precision on a '
            'CPU needs bfloat16. Pass --cfg-options optim_wrapper.dtype=bfloat16.'
        )
