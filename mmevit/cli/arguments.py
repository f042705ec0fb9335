"""Arguments that several commands share, and the config that they make."""

import argparse
import os
from pathlib import Path

from mmengine.config import DictAction

from mmevit.datasets.loading import load_readable_images
from mmevit.utils.configs import find_datasets, read_config
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import PICTURES, atomic_write, check_ending
from mmevit.utils.tables import TABLES, write_table

# Where launchers other than torchrun say which of its machine's processes this is.
LOCAL_RANKS = dict(slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')


def common_parser(description):
    """Make a parser with the arguments that mmdet's and mmpretrain's tools share.

    Args:
        description (str): What the tool does.

    Returns:
        argparse.ArgumentParser: The parser, to be added to.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics')
    add_config_arguments(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not pin the memory of the data loaders'
    )
    return parser


def add_config_arguments(parser):
    """Add the arguments of all that takes a config and a checkpoint.

    Args:
        parser (argparse.ArgumentParser): The parser, which is added to.
    """
    add_settings_argument(parser)
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load checkpoints that contain more than weights, and .pt2 files: runs their code',
    )


def add_settings_argument(parser):
    """Add the argument of all that takes a config.

    Args:
        parser (argparse.ArgumentParser): The parser, which is added to.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        metavar='KEY=VALUE',
        help='override settings of the config, such as model.backbone.arch=m0 or key="[a,b]"',
    )


class SettingsAction(DictAction):
    """:class:`mmengine.config.DictAction`, which says what it cannot read."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Read the settings."""
        try:
            super().__call__(parser, namespace, values, option_string)
        # What it raises depends on where in a value it gets lost.
        except Exception:
            parser.error(
                f'{option_string} {" ".join(values)} cannot be read: write KEY=VALUE, and lists as '
                'KEY="[a,b]" without spaces; what holds dicts needs a config file.'
            )


class SizeAction(argparse.Action):
    """Takes the side of square images, or their height and width, as (height, width)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, type=int, nargs='+', metavar=('H', 'W'))

    def __call__(self, parser, namespace, values, option_string=None):
        """Check and keep the size."""
        if len(values) > 2 or min(values) < 1:
            parser.error(f'{option_string} takes a side, or a height and a width, in pixels.')
        setattr(namespace, self.dest, (values[0], values[-1]))


def load_config(args, splits, needs):
    """Read the config and apply the arguments that the tools share.

    Args:
        args (argparse.Namespace): The parsed command line.
        splits (Sequence[str]): Which of ``'train'``, ``'val'`` and ``'test'`` the tool uses. The
            others are left as they are, for those who read the config that the work dir keeps.
        needs (Sequence[str]): Settings that the tool cannot do without.

    Returns:
        Config: The config.

    Raises:
        ConfigError: If it is missing, cannot be read, or lacks one of ``needs``.
    """
    # mmengine sets it too, but later.
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
        # mmpretrain's configs count on its tools for this; mmdet's say it themselves.
        if cfg.get('default_scope') == 'mmpretrain':
            dataloader.setdefault('pin_memory', True)
            dataloader.setdefault('persistent_workers', dataloader.get('num_workers', 0) > 0)
            dataloader.setdefault('collate_fn', dict(type='default_collate'))
        if args.no_pin_memory:
            dataloader.pin_memory = False
    return cfg


def add_output_arguments(parser):
    """Add the files to write to a command line.

    Args:
        parser (argparse.ArgumentParser): The parser, which is added to.
    """
    parser.add_argument('--out', help='table to write, .md, .csv or .json')
    parser.add_argument('--plot', help='picture to write')


def check_outputs(args):
    """Check early that the files to write end as they must.

    Args:
        args (argparse.Namespace): The parsed command line.

    Raises:
        UserError: If one does not.
    """
    for path, endings in ((args.out, TABLES), (args.plot, PICTURES)):
        if path:
            check_ending(path, endings)


def write_outputs(args, rows, columns, note, draw):
    """Write the files that a command line asks for.

    Args:
        args (argparse.Namespace): The parsed command line.
        rows (list[dict]): See :func:`write_table`.
        columns (dict[str, tuple[str, str]]): See :func:`write_table`.
        note (str): See :func:`write_table`.
        draw (Callable[[], matplotlib.figure.Figure]): Draws the picture.
    """
    if args.out:
        write_table(rows, columns, note, args.out)
    if args.plot:
        with atomic_write(args.plot) as path:
            draw().savefig(path, dpi=150)
