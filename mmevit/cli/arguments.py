"""The arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, DictAction

from mmevit.datasets.loading import load_readable_images
from mmevit.utils.configs import list_dataset_configs, read_config, type_name
from mmevit.utils.files import PICTURES, atomic_write
from mmevit.utils.tables import TABLES, write_table

from .command import (  # noqa: F401  for commands
    argument,
    command,
    ends_in,
    exclusive,
    flag,
    group,
    positive_int,
)

if TYPE_CHECKING:  # the smallest build of mmengine comes without matplotlib
    from matplotlib.figure import Figure

# Variables of the local rank, for launchers other than torchrun.
LOCAL_RANKS = dict(slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')


class SettingsAction(DictAction):
    """:class:`mmengine.config.DictAction` with a clear error message."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str = ''
    ) -> None:
        """Parse the settings."""
        try:
            super().__call__(parser, namespace, values, option_string)
        # DictAction raises various errors.
        except Exception:
            parser.error(
                f'{option_string} {" ".join(values)} is not valid. Write KEY=VALUE, and lists as '
                'KEY="[a,b]" without spaces. Set dicts in a config file.'
            )


class SizeAction(argparse.Action):
    """Parse the side of square images, or their height and width, to (height, width)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, type=int, nargs='+', metavar=('H', 'W'))

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Check and store the size."""
        if len(values) > 2 or min(values) < 1:
            parser.error(f'{option_string} requires a side, or a height and a width, in pixels.')
        setattr(namespace, self.dest, (values[0], values[-1]))


add_settings_argument = argument(
    '--cfg-options',
    'override settings of the config, in the format key=value, for example '
    'model.backbone.arch=m0. Write lists as key="[a,b]", without spaces',
    nargs='+',
    action=SettingsAction,
)
# Arguments of commands with a config and a checkpoint.
add_config_arguments = group(
    add_settings_argument,
    flag(
        '--trust-checkpoint',
        'load .pt2 files and checkpoints with more than weights; this runs their code',
    ),
)
# The common arguments of mmdet's and mmpretrain's tools.
add_run_arguments = group(
    argument('--work-dir', 'directory for logs, checkpoints and metrics'),
    add_config_arguments,
    argument(
        '--launcher',
        'job launcher of a distributed run',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
    ),
    argument('--local_rank', argparse.SUPPRESS, type=int, default=0),
    argument('--local-rank', argparse.SUPPRESS, type=int, default=0),
    flag('--no-pin-memory', 'do not use pinned memory in data loaders'),
)
add_amp_argument = flag('--amp', 'train with automatic mixed precision')
add_output_arguments = group(
    argument('--out', 'file for the table: .md, .csv or .json', type=ends_in(*TABLES)),
    argument('--plot', 'file for the plot: .png, .svg or .pdf', type=ends_in(*PICTURES)),
)


def load_config(args: Namespace, splits: Sequence[str], needs: Sequence[str]) -> Config:
    """Read the config, and apply :data:`add_run_arguments`.

    Args:
        args: The parsed arguments.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the command uses. The others are
            not changed, since the config is saved in the work directory.
        needs: Required settings.
    """
    # mmengine sets it too late for the checks.
    local_rank = LOCAL_RANKS.get(args.launcher, 'LOCAL_RANK')
    os.environ['LOCAL_RANK'] = os.environ.get(local_rank, str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options, needs)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader')
        if dataloader is None:
            continue
        for dataset in list_dataset_configs(cfg, split):
            load_readable_images(dataset, on_error='skip' if split == 'train' else 'blank')
        # mmpretrain sets these in its tools, mmdet in its configs.
        if cfg.get('default_scope') == 'mmpretrain':
            dataloader.setdefault('pin_memory', True)
            dataloader.setdefault('persistent_workers', dataloader.get('num_workers', 0) > 0)
            dataloader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            dataloader.pin_memory = False
    return cfg


def use_mixed_precision(cfg: Config) -> None:
    """Apply :data:`add_amp_argument`."""
    is_adaptive = type_name(cfg.optim_wrapper).startswith('AdaptiveClip')
    cfg.optim_wrapper.type = 'AdaptiveClipAmpOptimWrapper' if is_adaptive else 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def write_outputs(
    args: Namespace,
    rows: Sequence[dict],
    columns: Mapping[str, tuple[str, str]],
    note: str,
    draw: Callable[[], Figure],
) -> None:
    """Write ``--out``, see :func:`write_table`, and ``--plot``."""
    if args.out:
        write_table(rows, columns, note, args.out)
    if args.plot:
        with atomic_write(args.plot) as path:
            draw().savefig(path, dpi=150)
