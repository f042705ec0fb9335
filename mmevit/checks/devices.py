"""Check that the GPUs, processes and number types that a config asks for are there."""

import os

import torch
from mmengine.device import get_device

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError


def check_device(cfg):
    """Check that the GPUs and the processes that a config asks for are there.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If there are none, or fewer than processes.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun has started: use '
            'tools/dist_train.sh or tools/dist_test.sh, or leave it out to run in one process.'
        )
    if get_device() == 'cpu':
        check_cpu(cfg, launcher)
    elif launcher == 'pytorch' and get_device() == 'cuda':
        rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if rank >= count:
            raise ConfigError(
                f'Process {rank} of this machine asks for GPU {rank}, but PyTorch sees {count}: '
                'start no more processes than there are GPUs.'
            )


def check_cpu(cfg, launcher):
    """Check that nothing asks for a GPU, where there is none.

    Args:
        cfg (Config): The config.
        launcher (str): What started the processes.

    Raises:
        ConfigError: If something does.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if visible not in ('', '-1'):
        raise ConfigError(
            f'CUDA_VISIBLE_DEVICES={visible} asks for a GPU, but PyTorch sees none: check the '
            'driver and that PyTorch was built for CUDA, or unset it to run on the CPU.'
        )
    if launcher in ('slurm', 'mpi'):
        raise ConfigError(
            f'--launcher {launcher} asks for GPUs, but PyTorch sees none: run without a launcher, '
            'or on several CPU processes with tools/dist_train.sh.'
        )


def check_mixed_precision(cfg):
    """Check that a config that trains in mixed precision on a CPU does so in bfloat16.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If it names another type, such as float16, which needs a GPU, or the model is
            a detector in two stages, for which mmcv has only operators in float32.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    dtype = str(wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    mixed = ('AmpOptimWrapper', 'Bfloat16OptimWrapper')
    if get_device() != 'cpu' or not type_name(wrapper).endswith(mixed):
        return
    if cfg.model.get('roi_head'):
        raise ConfigError(
            f'{type_name(cfg.model)} proposes regions, for which mmcv has no operators in bfloat16 '
            'on a CPU: leave out mixed precision (--amp), or train on a GPU.'
        )
    if dtype != 'bfloat16':
        raise ConfigError(
            f'optim_wrapper.dtype is {dtype}, but PyTorch sees no GPU, and on a CPU mixed '
            'precision is in bfloat16: give --cfg-options optim_wrapper.dtype=bfloat16.'
        )
