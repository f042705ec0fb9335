"""Validate config, devices and data before the model is built."""

import os
from collections.abc import Sequence

from mmengine.config import Config

from mmevit.utils.errors import reraise_as_config_error

from .class_counts import check_number_of_classes
from .classes import check_classes
from .data import check_data
from .models import check_model
from .settings import (
    check_device,
    check_mixed_precision,
    check_pixels,
    check_schedule,
    warn_of_pixels,
)

__all__ = ['check_config']


@reraise_as_config_error()
def check_config(cfg: Config, splits: Sequence[str]) -> None:
    """Validate a config of any OpenMMLab library, the devices and the data.

    Args:
        cfg: The config.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run will use.

    Raises:
        ConfigError: If something is invalid or missing.

    Example:
        >>> from mmengine.config import Config
        >>> check_config(Config(dict(model=dict(type='RetinaNet'))), splits=['train'])
    """
    check_device(cfg)
    if 'train' in splits:
        check_mixed_precision(cfg)
        check_schedule(cfg)
    check_model(cfg.model, cfg.get('default_scope'))
    check_pixels(cfg)
    check_number_of_classes(cfg, splits)
    # Only the first process of a machine reads files and warns.
    if int(os.environ.get('LOCAL_RANK', 0)) > 0:
        return
    if 'train' in splits:
        warn_of_pixels(cfg)
    for split in splits:
        check_data(cfg, split)
    check_classes(cfg, splits)
