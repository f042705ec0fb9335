"""Train a model from a config of mmdet, mmpretrain or mmsegmentation."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import common_parser, load_config
from mmevit.cli.errors import report_errors
from mmevit.engine.checkpointing import resume_from
from mmevit.engine.runner import build_trainer
from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint (default: the last one in the work directory)',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not evaluate during training'
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='restart the workers of the data loaders every epoch',
    )
    return parser.parse_args(argv)


@report_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Validate config, devices and data, then train."""
    args = parse_args(argv)
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    splits = ('train', 'val')
    needs = ('model', 'train_dataloader', 'optim_wrapper', 'train_cfg')
    cfg = load_config(args, splits, needs)
    apply_flags(cfg, args)
    check_checkpoint(cfg.get('load_from'))
    check_config(cfg, splits)
    build_trainer(cfg).train()


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments of this command to the config.

    Raises:
        ConfigError: If ``--auto-scale-lr`` is given, but the config has no base batch size.
    """
    if args.amp:
        is_adaptive = type_name(cfg.optim_wrapper).startswith('AdaptiveClip')
        cfg.optim_wrapper.type = 'AdaptiveClipAmpOptimWrapper' if is_adaptive else 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
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
        cfg.train_dataloader.persistent_workers = False
        if cfg.get('val_dataloader') is not None:
            cfg.val_dataloader.persistent_workers = False
