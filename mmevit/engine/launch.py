"""From a command line to a runner: what tools/train.py and tools/test.py have in common."""

import argparse
import contextlib
import io
import os
import pickle
import sys
import traceback
from pathlib import Path
from urllib.error import URLError

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hub import get_config
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from mmevit.checks.batches import check_batch_sizes
from mmevit.checks.labels import refuse_empty_datasets
from mmevit.errors import ConfigError, UserError, one_line, reraise_as_config_error
from mmevit.files import DISK_FULL
from mmevit.utils.configs import convert_sizes, find_datasets, find_library, type_name

from .checkpointing import save_safely
from .cpu_processes import join_cpu_processes
from .data_hooks import add_data_hooks
from .mixed_precision import train_in_bfloat16
from .schedule import by_name

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


def read_config(path, options, needs=()):
    """Read a config file.

    Args:
        path (str): The file, or a name such as ``mmevit::efficientvit/retinanet_evit_m4.py`` for
            one of an installed library.
        options (dict | None): Settings that override it.
        needs (Sequence[str]): Settings that are asked for. Defaults to none.

    Returns:
        Config: The config.

    Raises:
        ConfigError: If it is missing, cannot be read, or lacks one of ``needs``.
    """
    is_installed = '::' in str(path)
    if not is_installed and not os.path.isfile(path):
        raise ConfigError(f'The config {path} is missing: the ones here are in configs/.')
    try:
        if is_installed:
            cfg = get_config(path)
        else:
            cfg = Config.fromfile(path, import_custom_modules=False)
    # A config is code, and raises what it likes.
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ConfigError(f'The config {path} cannot be read: {reason}') from error
    if cfg.get('custom_imports'):
        # Outside of the above, so that an error in a module of the user keeps its traceback.
        with reraise_as_config_error():
            import_modules_from_strings(**cfg.custom_imports)
    if options is not None:
        try:
            cfg.merge_from_dict(options)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options does not fit {path}: {one_line(error)}') from error
    missing = [name for name in needs if cfg.get(name) is None]
    if missing:
        raise ConfigError(f'{path} is no whole config: it has no {", ".join(missing)}.')
    with reraise_as_config_error():  # This imports what a config in Python style names.
        convert_sizes(cfg._cfg_dict)
        if cfg.get('default_scope') is None:
            cfg.default_scope = find_library(cfg.get('model') or {}) or 'mmengine'
    return cfg


def load_readable_images(dataset, on_error):
    """Have a data set survive images that cannot be read.

    Args:
        dataset (ConfigDict): Config of a data set, whose pipeline is replaced.
        on_error (str): What becomes of such an image, see :class:`LoadReadableImage`.
    """
    if dataset.get('pipeline'):
        readable = dict(type='LoadReadableImage', on_error=on_error)
        dataset.pipeline = [
            {**step, **readable} if type_name(step) == 'LoadImageFromFile' else step
            for step in dataset.pipeline
        ]


def check_checkpoint(path):
    """Check that a checkpoint that is to be loaded from this disk is there.

    Args:
        path (str | None): Path or URL; None is fine.

    Raises:
        ConfigError: If it is missing.
    """
    if path and '://' not in path and not os.path.isfile(path):
        raise ConfigError(
            f'The checkpoint {path} is missing: training leaves them in its work directory.'
        )


def build_model(cfg):
    """Build the model of a config as a runner does, but without one.

    Args:
        cfg (Config): The config, in which the model gets the data preprocessor that stands beside
            it.

    Returns:
        nn.Module: The model.
    """
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')
    with scope, reraise_as_config_error():
        return MODELS.build(cfg.model)


def build_trainer(cfg):
    """Build the runner of a config for training that survives a kill and ends where it goes wrong.

    Args:
        cfg (Config): The config, with ``launcher`` set, whose hooks are changed.

    Returns:
        Runner: The runner.
    """
    save_safely(cfg)
    hooks = (
        'ResumableRandomnessHook',
        'ConfigScheduleHook',
        'InvalidLossHook',
        'TrainingWeightsHook',
    )
    # The config that a work directory keeps has them already.
    others = [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) not in hooks]
    cfg.custom_hooks = [*others, *(dict(type=name) for name in hooks)]
    runner = build_runner(cfg)
    if not isinstance(runner, Runner):  # one with a strategy of its own
        return runner
    with reraise_as_config_error():
        # Otherwise built when training starts, in this order.
        with refuse_empty_datasets('train'):
            runner.train_loop  # noqa: B018
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        with refuse_empty_datasets('val'):
            runner.val_loop  # noqa: B018
    count_accumulated_batches(runner)
    check_batch_sizes(runner)
    return runner


def count_accumulated_batches(runner):
    """Have ``auto_scale_lr`` count every batch that is accumulated for an update.

    Args:
        runner (Runner): The runner, with its optimizer built.

    Raises:
        ConfigError: If several optimizers accumulate different numbers of batches.
    """
    scaling = runner.auto_scale_lr or {}
    if not scaling.get('enable'):
        return
    wrappers = by_name(runner.optim_wrapper).values()
    counts = {getattr(wrapper, '_accumulative_counts', 1) for wrapper in wrappers}
    if counts == {1}:
        return
    if len(counts) > 1:
        raise ConfigError(
            f'auto_scale_lr is enabled, but the optimizers have accumulative_counts '
            f'{sorted(counts)}. Make them equal, or set the learning rates without auto_scale_lr.'
        )
    (count,) = counts
    runner.logger.info(f'auto_scale_lr: each update sees {count} accumulated batches.')
    # mmengine divides the batch size of all processes by this.
    runner.auto_scale_lr = {**scaling, 'base_batch_size': scaling['base_batch_size'] / count}


def build_runner(cfg):
    """Build the runner of a config; on CPUs, in bfloat16 if in mixed precision, processes joined.

    Args:
        cfg (Config): The config, with ``launcher`` set.

    Returns:
        Runner: The runner.
    """
    add_data_hooks(cfg)
    on_cpu = get_device() == 'cpu'
    if on_cpu:
        train_in_bfloat16(cfg)
    if on_cpu and cfg.launcher == 'pytorch':
        join_cpu_processes(cfg)
    with reraise_as_config_error():
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


@contextlib.contextmanager
def one_sentence_errors():
    """End the program with the sentence of a :class:`UserError` rather than with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Names of classes and files may have characters that the console does not have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        # From data sets that download themselves.
        sys.exit(
            f'error: A download failed ({error.reason}): put the files where the config expects '
            'them by hand, or try again with a connection.'
        )
    except pickle.UnpicklingError as error:
        # From a loader of mmengine's for URLs, which PyTorch has kept from unpickling.
        reason = ' '.join(str(error).split('\n')[0].split())
        sys.exit(
            f'error: A checkpoint holds more than weights, or is damaged ({reason}): '
            'give --trust-checkpoint if you know where it comes from.'
        )
    # From what is not ours, such as modules of the user's own: where it was is for those who ask.
    except Exception as error:
        if getattr(error, 'errno', None) in DISK_FULL:
            sys.exit(f'error: Nothing more can be written ({error}): make room, and try again.')
        traceback.print_exc()
        sys.exit(f'error: {one_line(error)} (see the traceback above)')
