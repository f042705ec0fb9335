"""Arguments shared by several commands, and loading of configs with them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, DictAction

from mmevit.datasets.loading import load_readable_images
from mmevit.utils.configs import find_datasets, read_config
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import PICTURES, atomic_write, check_ending
from mmevit.utils.tables import TABLES, write_table

if TYPE_CHECKING:  # the smallest build of mmengine comes without matplotlib
    from matplotlib.figure import Figure

# Variables of the local rank, for launchers other than torchrun.
LOCAL_RANKS = dict(slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser with the common arguments of mmdet's and mmpretrain's tools."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--work-dir', help='directory for logs, checkpoints and metrics')
    add_config_arguments(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher of a distributed run',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not use pinned memory in data loaders'
    )
    return parser


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands with a config and a checkpoint."""
    add_settings_argument(parser)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load .pt2 files and checkpoints with more than weights; this runs their code',
    )


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        help='override settings of the config, in the format key=value, for example '
        'model.backbone.arch=m0. Write lists as key="[a,b]", without spaces',
    )


class SettingsAction(DictAction):
    """:class:`mmengine.config.DictAction` with a clear error message."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str = '',
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
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Check and store the size."""
        if len(values) > 2 or min(values) < 1:
            parser.error(f'{option_string} requires a side, or a height and a width, in pixels.')
        setattr(namespace, self.dest, (values[0], values[-1]))


def load_config(args: argparse.Namespace, splits: Sequence[str], needs: Sequence[str]) -> Config:
    """Read the config, and apply the arguments of :func:`common_parser`.

    Args:
        args: The parsed arguments.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that the command uses. The others are
            not changed, since the config is saved in the work directory.
        needs: Required settings.

    Raises:
        ConfigError: If the config is missing or invalid, or a required setting is missing.
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
        if not dataloader.get('dataset'):
            raise ConfigError(
                f'Incomplete config {args.config}: {split}_dataloader has no dataset.'
            )
        for dataset in find_datasets(dataloader.dataset):
            load_readable_images(dataset, on_error='skip' if split == 'train' else 'blank')
        # mmpretrain sets these in its tools, mmdet in its configs.
        if cfg.get('default_scope') == 'mmpretrain':
            dataloader.setdefault('pin_memory', True)
            dataloader.setdefault('persistent_workers', dataloader.get('num_workers', 0) > 0)
            dataloader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            dataloader.pin_memory = False
    return cfg


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` and ``--plot``."""
    parser.add_argument('--out', help='file for the table: .md, .csv or .json')
    parser.add_argument('--plot', help='file for the plot')


def check_outputs(args: argparse.Namespace) -> None:
    """Check the suffixes of ``--out`` and ``--plot``.

    Raises:
        UserError: If one is not supported.
    """
    for path, endings in ((args.out, TABLES), (args.plot, PICTURES)):
        if path:
            check_ending(path, endings)


def write_outputs(
    args: argparse.Namespace,
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
