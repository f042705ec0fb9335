"""Check the normalization of images and the statistics of batch norm."""

import logging

from mmengine.config import Config
from mmengine.logging import print_log

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError

# The pixels that the released weights were trained on, as mmdet and mmsegmentation write them.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


def check_pixels(cfg: Config) -> None:
    """Raise ConfigError if mean or std has a wrong number of values."""
    backbone = cfg.model.get('backbone') or {}
    if type_name(backbone) != 'EfficientViT':
        return
    in_channels = backbone.get('in_channels', 3)
    name, preprocessor = find_preprocessor(cfg)
    for key in ('mean', 'std'):
        values = preprocessor.get(key)
        if isinstance(values, (list, tuple)) and len(values) not in (1, in_channels):
            raise ConfigError(
                f'{name}.{key} has {len(values)} values, but model.backbone.in_channels is '
                f'{in_channels}. Pass one value per channel.'
            )


def find_preprocessor(cfg: Config) -> tuple[str, dict]:
    """Find name and config of the data preprocessor."""
    if cfg.model.get('data_preprocessor'):
        return 'model.data_preprocessor', cfg.model.data_preprocessor
    return 'data_preprocessor', cfg.get('data_preprocessor') or {}


def warn_of_random_statistics(cfg: Config) -> None:
    """Warn if batch norm is frozen, but no trained weights are loaded."""
    backbone = cfg.model.get('backbone') or {}
    is_loaded = any(cfg.get(key) for key in ('load_from', 'resume')) or any(
        part.get('init_cfg') for part in (cfg.model, backbone)
    )
    if type_name(backbone) == 'EfficientViT' and backbone.get('norm_eval') and not is_loaded:
        warn(
            'model.backbone.norm_eval=True freezes batch norm, but the backbone has random '
            'weights. Set model.backbone.init_cfg to trained weights, or norm_eval=False.'
        )


def warn_of_other_pixels(cfg: Config) -> None:
    """Warn if images are not normalized as for training the loaded weights.

    This is so with mmdet's own configs of FCOS, SSD, YOLOX and RTMDet.
    """
    backbone = cfg.model.get('backbone') or {}
    preprocessor = cfg.model.get('data_preprocessor') or {}
    is_loaded = type_name(backbone) == 'EfficientViT' and backbone.get('init_cfg')
    is_rgb = backbone.get('in_channels', 3) == 3
    pixels = {name: preprocessor.get(name) for name in IMAGENET_PIXELS}
    if is_loaded and is_rgb and preprocessor and pixels != IMAGENET_PIXELS:
        warn(
            f'The weights in model.backbone.init_cfg were trained with {IMAGENET_PIXELS}, but '
            f'model.data_preprocessor has {pixels}. Set the former if they are weights of ImageNet.'
        )


def warn(message: str) -> None:
    """Log a warning."""
    print_log(message, logger='current', level=logging.WARNING)
