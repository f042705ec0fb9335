"""Build runners for training and evaluation."""

from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmevit.checks.batches import check_batch_sizes
from mmevit.checks.labels import refuse_empty_datasets
from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError, reraise_as_config_error

from .checkpointing import save_safely
from .cpu_processes import join_cpu_processes
from .data_hooks import add_data_hooks
from .mixed_precision import train_in_bfloat16
from .schedule import by_name


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
