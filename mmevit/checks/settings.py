"""Check settings of a run: devices, number types, its length and the normalization of images."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmevit.utils.configs import as_list, find_preprocessor, type_name
from mmevit.utils.errors import ConfigError, warn

# The pixels that the released weights were trained on, as mmdet and mmsegmentation write them.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def check_device(cfg: Config) -> None:
    """Raise ConfigError if a requested GPU does not exist."""
    launcher = cfg.get('launcher', 'none')
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun has started. Use '
            'tools/dist_train.sh or tools/dist_test.sh, or omit it to run in one process.'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if get_device() == 'cpu':
        if visible not in ('', '-1'):
            raise ConfigError(
                f'CUDA_VISIBLE_DEVICES={visible} requests a GPU, but PyTorch finds none. Check the '
                'driver and that PyTorch was built for CUDA, or unset it to run on the CPU.'
            )
        if launcher in ('slurm', 'mpi'):
            raise ConfigError(
                f'--launcher {launcher} needs GPUs, but PyTorch finds none. Run without a '
                'launcher, or in several CPU processes with tools/dist_train.sh.'
            )
    elif launcher == 'pytorch' and get_device() == 'cuda':
        rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if rank >= count:
            raise ConfigError(
                f'Process {rank} of this machine needs GPU {rank}, but PyTorch finds {count} GPUs. '
                'Start at most one process per GPU.'
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


def check_schedule(cfg: Config) -> None:
    """Raise ConfigError if training has no length or a scheduler never begins."""
    train_cfg = cfg.get('train_cfg') or {}
    for length in ('max_epochs', 'max_iters', 'val_interval'):
        value = train_cfg.get(length, 1)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f'train_cfg.{length} is {value!r}. Pass a positive integer.')
    max_epochs = train_cfg.get('max_epochs')
    for scheduler in as_list(cfg.get('param_scheduler') or []):
        begin = scheduler.get('begin', 0)
        if max_epochs and scheduler.get('by_epoch', True) and begin >= max_epochs:
            raise ConfigError(
                f'{type_name(scheduler)} in param_scheduler begins after {begin} epochs, but '
                f'train_cfg.max_epochs is {max_epochs}. Train longer, or pass --cfg-options '
                'param_scheduler=None for a short trial.'
            )


def check_pixels(cfg: Config) -> None:
    """Raise ConfigError if mean or std has a wrong number of values."""
    backbone = cfg.model.get('backbone') or {}
    in_channels = backbone.get('in_channels', 3)
    name, preprocessor = find_preprocessor(cfg)
    for key in ('mean', 'std') if type_name(backbone) == 'EfficientViT' else ():
        values = preprocessor.get(key)
        if isinstance(values, (list, tuple)) and len(values) not in (1, in_channels):
            raise ConfigError(
                f'{name}.{key} has {len(values)} values, but model.backbone.in_channels is '
                f'{in_channels}. Pass one value per channel.'
            )


def warn_of_pixels(cfg: Config) -> None:
    """Warn if batch norm is frozen at random values, or images differ from those of the weights.

    They do with mmdet's own configs of FCOS, SSD, YOLOX and RTMDet.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or {}
    if type_name(backbone) != 'EfficientViT':
        return
    is_loaded = any(cfg.get(key) for key in ('load_from', 'resume')) or any(
        part.get('init_cfg') for part in (cfg.model, backbone)
    )
    if backbone.get('norm_eval') and not is_loaded:
        warn(
            'model.backbone.norm_eval=True freezes batch norm, but the backbone has random '
            'weights. Set model.backbone.init_cfg to trained weights, or norm_eval=False.'
        )
    is_rgb = backbone.get('in_channels', 3) == 3
    pixels = {name: preprocessor.get(name) for name in IMAGENET_PIXELS}
    if backbone.get('init_cfg') and is_rgb and preprocessor and pixels != IMAGENET_PIXELS:
        warn(
            f'The weights in model.backbone.init_cfg were trained with {IMAGENET_PIXELS}, but '
            f'model.data_preprocessor has {pixels}. Set the former if they are weights of ImageNet.'
        )
