"""Resuming with the learning-rate schedule of the current config."""

import warnings
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

from mmengine.hooks import Hook, ParamSchedulerHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.optim import Optimizer

from mmevit.utils.errors import CheckpointError, shorten

# Attributes of mmengine's schedulers that change during training; all others are settings.
STATE = {
    '_global_step',
    '_last_value',
    'best',
    'cooldown_counter',
    'last_step',
    'num_bad_epochs',
    'verbose',
}


@HOOKS.register_module()
class ConfigScheduleHook(Hook):
    """Follow the schedule of the config after a resume, not the one in the checkpoint.

    mmengine restores schedulers and optimizer settings from the checkpoint, so that changed
    settings, such as a larger ``max_epochs``, have no effect. If they differ, this hook replays the
    schedule of the config up to the resumed iteration: learning rates are those of an uninterrupted
    run with the new config. Training commands add this hook; elsewhere set
    ``custom_hooks = [dict(type='ConfigScheduleHook')]``.

    Raises:
        CheckpointError: If the checkpoint is of another optimizer or other parameter groups.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace schedulers and optimizer settings in the checkpoint if the config has others."""
        is_resuming = isinstance(runner, Runner) and runner._resume
        if not is_resuming or 'optimizer' not in checkpoint:
            return
        wrappers = wrappers_by_name(runner.optim_wrapper)
        optimizers = by_name(checkpoint['optimizer'], wrappers)
        saved = by_name(checkpoint.get('param_schedulers'), wrappers)
        schedulers = by_name(runner.param_schedulers, wrappers)
        meta, changes = checkpoint['meta'], []
        for name, wrapper in wrappers.items():
            check_optimizer(wrapper.optimizer, optimizers.get(name, {}))
            changes += list_schedule_changes(schedulers[name], saved.get(name, []), meta)
            changes += list_group_changes(wrapper, optimizers[name], schedulers[name])
        if not changes:
            return
        if any(getattr(one, 'need_val_args', False) for one in chain(*schedulers.values())):
            runner.logger.warning(
                f'The schedule of the config differs from that of the checkpoint '
                f'({shorten(changes)}), but ReduceOnPlateau depends on past metrics. Training '
                'continues with the schedule of the checkpoint.'
            )
            return
        replay_schedule(runner, meta['iter'], meta['epoch'])
        for name, wrapper in wrappers.items():
            saved[name] = [scheduler.state_dict() for scheduler in schedulers[name]]
            for group, own in paired_groups(wrapper, optimizers[name]):
                group.update({key: value for key, value in own.items() if key != 'params'})
        checkpoint['param_schedulers'] = saved.get('', saved)
        rates = sorted({group['lr'] for group in next(iter(wrappers.values())).param_groups})
        runner.logger.info(
            'The schedule follows the config, which differs from that of the checkpoint: '
            f'{shorten(changes)}. The learning rate is {rates[-1]:.4g}.'
        )


def wrappers_by_name(wrapper: Any) -> dict[str, OptimWrapper]:
    """Return optimizer wrappers by name; a single one has an empty name."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def by_name(values: Any, names: Collection[str]) -> dict[str, Any]:
    """Return schedulers or states by the names of the optimizers."""
    if '' in names:
        return {'': [] if values is None else values}
    return values or {name: [] for name in names}


def check_optimizer(optimizer: Optimizer, saved: dict) -> None:
    """Raise CheckpointError if a state dict is of another optimizer or other parameter groups."""
    hint = (
        'Resume with the settings of the checkpoint, or start from its weights with --cfg-options '
        'load_from=CHECKPOINT instead of --resume.'
    )
    own, theirs = optimizer.param_groups, saved.get('param_groups', [])
    sizes = [[len(group['params']) for group in groups] for groups in (own, theirs)]
    if sizes[0] != sizes[1]:
        counts = [f'{sum(size)} parameters in {len(size)} groups' for size in sizes]
        raise CheckpointError(
            f'Cannot resume: the optimizer of the checkpoint has {counts[1]}, but the optimizer '
            f'of the config has {counts[0]}. {hint}'
        )
    names, saved_names = (
        {key for key, value in groups[0].items() if is_setting(key, value)}
        for groups in (own, theirs)
    )
    if names != saved_names:
        raise CheckpointError(
            f'Cannot resume: the optimizer of the config, {type(optimizer).__name__}, has the '
            f'settings {shorten(sorted(names))}, but the optimizer of the checkpoint has '
            f'{shorten(sorted(saved_names))}. {hint}'
        )


def is_setting(key: str, value: Any) -> bool:
    """Whether an entry of a parameter group is a setting of the optimizer in the config.

    Flags such as ``foreach`` vary with the version of PyTorch, and schedulers add their own values.
    """
    is_flag = value is None or isinstance(value, bool)
    return not is_flag and key != 'params' and not key.startswith(('initial_', 'max_', 'min_'))


def list_schedule_changes(
    schedulers: Sequence[Any], saved: Sequence[dict], meta: dict
) -> list[str]:
    """List differences between new schedulers of the config and the states in the checkpoint."""
    if len(schedulers) != len(saved):
        return [f'{len(saved)} -> {len(schedulers)} schedulers']
    changes = []
    for scheduler, theirs in zip(schedulers, saved, strict=True):
        kind, own = type(scheduler).__name__, scheduler.state_dict()
        step = meta['epoch' if scheduler.by_epoch else 'iter']
        for key in sorted((own.keys() | theirs.keys()) - STATE):
            if own.get(key) != theirs.get(key):
                changes.append(describe(f'{kind}.{key}', theirs.get(key), own.get(key)))
        if theirs['_global_step'] != step:
            changes.append(describe(f'{kind} step', theirs['_global_step'], step))
    return changes


def list_group_changes(wrapper: OptimWrapper, saved: dict, schedulers: Sequence[Any]) -> list[str]:
    """List differences of optimizer settings that no scheduler changes, each once."""
    scheduled = {scheduler.param_name for scheduler in schedulers}
    return list(
        dict.fromkeys(
            describe(key, theirs[key], own[key])
            for theirs, own in paired_groups(wrapper, saved)
            for key in own
            if key in theirs and key not in scheduled
            if is_setting(key, own[key]) and own[key] != theirs[key]
        )
    )


def paired_groups(wrapper: OptimWrapper, saved: dict) -> list[tuple[dict, dict]]:
    """Pair the parameter groups of a checkpoint with those of an optimizer wrapper."""
    theirs = [*saved['param_groups']]
    if saved.get('base_param_settings'):
        theirs.append(saved['base_param_settings'])
    return list(zip(theirs, wrapper.param_groups, strict=False))


def describe(name: str, old: Any, new: Any) -> str:
    """Describe a change; in lists of the same length, that of the first different item."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = next(pair for pair in zip(old, new, strict=True) if pair[0] != pair[1])
    old, new = (sorted(value) if isinstance(value, dict) else value for value in (old, new))
    return f'{name} {old} -> {new}'


def replay_schedule(runner: Runner, iterations: int, epochs: int) -> None:
    """Step the schedulers as training does in a number of epochs and iterations."""
    hook = ParamSchedulerHook()
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    epoch_length = len(runner.train_dataloader) if by_epoch else 0
    with warnings.catch_warnings():
        # PyTorch's and mmengine's schedulers warn if the optimizer has not been stepped before.
        warnings.simplefilter('ignore')
        for _ in range(epochs):
            for _ in range(epoch_length):
                hook.after_train_iter(runner, 0)
            hook.after_train_epoch(runner)
        for _ in range(iterations - epochs * epoch_length):
            hook.after_train_iter(runner, 0)
