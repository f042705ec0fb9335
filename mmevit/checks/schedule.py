"""Check the length of training and its schedulers."""

from mmengine.config import Config

from mmevit.utils.configs import as_list, type_name
from mmevit.utils.errors import ConfigError


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
