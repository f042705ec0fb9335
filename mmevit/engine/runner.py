"""Build runners for training and evaluation."""

from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmevit.checks.batches import check_batch_sizes
from mmevit.checks.labels import refuse_empty_datasets
from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError, reraise_as_config_error

from .checkpointing import use_atomic_checkpoints
from .cpu_processes import init_cpu_process_group
from .data_hooks import add_data_hooks
from .optim_wrappers import train_in_bfloat16
from .schedule import wrappers_by_name

TRAINING_HOOKS = (
    'ResumableRandomnessHook',
    'ConfigScheduleHook',
    'InvalidLossHook',
    'TrainingWeightsHook',
)


def build_trainer(cfg: Config) -> Runner:
    """Build a runner for fault-tolerant training; adds hooks to the config."""
    use_atomic_checkpoints(cfg)
    # The config in a work directory has the hooks already.
    hooks = [h for h in cfg.get('custom_hooks') or [] if type_name(h) not in TRAINING_HOOKS]
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in TRAINING_HOOKS)]
    runner = build_runner(cfg)
    if not isinstance(runner, Runner):  # such as FlexibleRunner, with its own strategy
        return runner
    with reraise_as_config_error():
        # Otherwise built when training starts, in this order.
        with refuse_empty_datasets('train'):
            runner.train_loop  # noqa: B018
        settings: Any = runner.optim_wrapper
        runner.optim_wrapper = runner.build_optim_wrapper(settings)
        with refuse_empty_datasets('val'):
            runner.val_loop  # noqa: B018
    include_accumulation_in_lr_scaling(runner)
    check_batch_sizes(runner)
    return runner


def include_accumulation_in_lr_scaling(runner: Runner) -> None:
    """Scale learning rates by ``auto_scale_lr`` for the batch size over accumulated batches."""
    scaling = runner.auto_scale_lr or {}
    if not scaling.get('enable'):
        return
    wrappers = wrappers_by_name(runner.optim_wrapper).values()
    # Private: optimizer wrappers have no public name for it, and constructors may change it.
    counts = {getattr(wrapper, '_accumulative_counts', 1) for wrapper in wrappers}
    if counts == {1}:
        return
    if len(counts) > 1:
        raise ConfigError(
            f'auto_scale_lr is enabled, but the optimizers have accumulative_counts '
            f'{sorted(counts)}. Make them equal, or set the learning rates without auto_scale_lr.'
        )
    (count,) = counts
    runner.logger.info(f'auto_scale_lr: the batch size is that of {count} accumulated batches.')
    # mmengine divides the batch size of all processes by this.
    runner.auto_scale_lr = {**scaling, 'base_batch_size': scaling['base_batch_size'] / count}


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, which may set another ``runner_type``.

    On CPUs, mixed precision is in bfloat16, and torchrun's process group is initialized.
    """
    add_data_hooks(cfg)
    if get_device() == 'cpu':
        train_in_bfloat16(cfg)
        if cfg.launcher == 'pytorch':
            init_cpu_process_group(cfg)
    with reraise_as_config_error():
        builder: Any = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
        return builder(cfg)
