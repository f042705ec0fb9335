"""Train a model from a config of mmdet, mmpretrain or mmsegmentation."""

from argparse import Namespace

from mmengine.config import Config

from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import (
    add_amp_argument,
    add_run_arguments,
    argument,
    command,
    flag,
    load_config,
    use_mixed_precision,
)
from mmevit.engine.checkpointing import resume_from
from mmevit.engine.runner import build_trainer
from mmevit.utils.errors import ConfigError


@command(
    add_run_arguments,
    argument('config', 'config file'),
    argument(
        '--resume',
        'resume from this checkpoint (default: the last one in the work directory)',
        nargs='?',
        const='auto',
    ),
    add_amp_argument,
    flag(
        '--auto-scale-lr',
        'scale the learning rate by the batch size / auto_scale_lr.base_batch_size',
    ),
    flag('--no-validate', 'do not evaluate during training'),
    flag('--no-persistent-workers', 'restart the workers of the data loaders every epoch'),
)
def main(args: Namespace) -> None:
    """Validate config, devices and data, then train."""
    splits = ('train', 'val')
    cfg = load_config(args, splits, ['model', 'train_dataloader', 'optim_wrapper', 'train_cfg'])
    apply_flags(cfg, args)
    check_checkpoint(cfg.get('load_from'))
    check_config(cfg, splits)
    build_trainer(cfg).train()


def apply_flags(cfg: Config, args: Namespace) -> None:
    """Apply the arguments of this command to the config."""
    if args.amp:
        use_mixed_precision(cfg)
    if args.resume is not None:
        resume_from(cfg, None if args.resume == 'auto' else args.resume)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                '--auto-scale-lr requires auto_scale_lr.base_batch_size in the config. Set it to '
                'the total batch size that the learning rate is for.'
            )
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.no_persistent_workers:
        for dataloader in filter(None, (cfg.train_dataloader, cfg.get('val_dataloader'))):
            dataloader.persistent_workers = False
