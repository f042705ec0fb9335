"""Fault-tolerant checkpoints, and resuming from them."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from mmevit.checkpoint import read_checkpoint
from mmevit.checkpoint.matching import (
    check_fit,
    check_resumable,
    drop_mismatched_weights,
    list_nonfinite,
    missing_state,
    require_fit,
)
from mmevit.checks.classes import check_checkpoint_classes
from mmevit.utils.configs import type_name
from mmevit.utils.errors import CheckpointError, CorruptCheckpointError, UserError, shorten
from mmevit.utils.files import UNFINISHED, atomic_write, remove_leftovers
from mmevit.utils.pytorch import unwrap


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """:class:`mmengine.hooks.CheckpointHook` that always leaves a complete checkpoint.

    Checkpoints are written atomically, and old ones are removed only after the new one is complete;
    mmengine's hook removes first. Training stops if the weights are not finite. Accumulated
    gradients are saved too, those of the first process. Training commands replace mmengine's hook
    by this one; elsewhere::

        default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=3))

    Args:
        backend_args: Storage backend, as for mmengine's hook. Default: an atomic one for local
            files.
        **kwargs: Other arguments of :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        CheckpointError: If a checkpoint cannot be written, e.g. because the disk is full, or the
            weights are not finite. The message names the last complete checkpoint.
    """

    file_backend: Any

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        is_remote = '://' in str(kwargs.get('out_dir') or '') or kwargs.get('file_client_args')
        if backend_args is None and not is_remote:
            backend_args = dict(backend='atomic')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Remove partial files of a killed run, and run the evaluation that it has not finished."""
        super().before_train(runner)
        if runner.rank == 0:
            remove_leftovers(self.out_dir)
        self.file_backend = DelayedRemovalBackend(self.file_backend)
        if runner.val_loop is not None and is_evaluation_due(runner):
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        """Record that this iteration is evaluated, and save the best checkpoint."""
        runner.message_hub.update_info('evaluated_iter', runner.iter)
        super().after_val_epoch(runner, metrics)
        if self.save_best and metrics:
            self._remove_replaced()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and add accumulated gradients."""
        # EMAHook swaps both: with an average, the weights themselves are in `ema_state_dict`.
        weights = [*checkpoint['state_dict'].items(), *checkpoint.get('ema_state_dict', {}).items()]
        if broken := list_nonfinite(weights, unwrap(runner.model)):
            raise CheckpointError(
                f'The weights are not finite: {shorten(broken)}. Lower the learning rate, or clip '
                'gradients with optim_wrapper.clip_grad.'
            )
        wrapper: Any = runner.optim_wrapper
        is_single = isinstance(wrapper, OptimWrapper) and not isinstance(wrapper, OptimWrapperDict)
        if is_single and not wrapper.should_update():
            checkpoint['gradients'] = {
                name: parameter.grad.cpu()
                for name, parameter in unwrap(runner.model).named_parameters()
                if parameter.grad is not None
            }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore accumulated gradients."""
        parameters = dict(unwrap(runner.model).named_parameters())
        for name, gradient in checkpoint.pop('gradients', {}).items():
            if runner._resume:
                parameters[name].grad = gradient.to(parameters[name])

    # Private, but the public methods do not tell whether a checkpoint is saved.
    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        previous = runner.message_hub.runtime_info.get('last_ckpt')
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except UserError as error:
            hint = f'Then resume from {previous} with --resume.'
            raise CheckpointError(
                f'{error} {hint if previous else "No checkpoint was written before."}'
            ) from error
        optimizer: Any = getattr(runner.optim_wrapper, 'optimizer', None)
        is_sharded = hasattr(optimizer, 'consolidate_state_dict')
        if runner.rank > 0 and is_sharded and self.save_optimizer:
            # Only the first process saves, and waits for these parts of the state.
            optimizer.consolidate_state_dict()
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        several = getattr(self, 'best_ckpt_path_dict', {}).values()
        best = getattr(self, 'best_ckpt_path', None)
        self.file_backend.remove_except(self.last_ckpt, best, *several)


@register_backend('atomic')  # pyright: ignore[reportOptionalCall]
class AtomicFileBackend(LocalBackend):
    """:class:`mmengine.fileio.LocalBackend` that writes files atomically."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes, and wait until they are on the disk."""
        with atomic_write(filepath) as path, path.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())


class DelayedRemovalBackend:
    """File backend that removes files only when :meth:`remove_except` is called."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, filepath: str) -> None:
        """Mark a file for removal."""
        self.paths.append(filepath)

    def remove_except(self, *written: str | Path | None) -> None:
        """Remove the marked files, except those that have been written again."""
        while self.paths:
            path = self.paths.pop()
            if path not in written:
                self.backend.remove(path)


def is_evaluation_due(runner: Runner) -> bool:
    """Whether a resumed run was stopped before it had evaluated its checkpoint."""
    loop: Any = runner.train_loop
    if runner.iter in (0, runner.message_hub.runtime_info.get('evaluated_iter')):
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if by_epoch and runner.iter != runner.epoch * len(loop.dataloader):
        return False
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    # Private: mmengine applies dynamic_intervals only during training.
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Require checkpoints to fit the complete model; mmengine loads those that fit in part."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model, and its classes with those of the data."""
        check_fit(runner.model, checkpoint)
        check_checkpoint_classes(checkpoint, runner.test_dataloader.dataset)


@HOOKS.register_module()
class TrainingWeightsHook(Hook):
    """Check the weights that training starts from.

    To resume, the checkpoint must fit the complete model and have the classes of the data.
    Otherwise the weights of the backbone must fit; weights of a head for other classes are not
    loaded, with a warning.
    """

    # Before hooks that use the checkpoint, such as EMAHook.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the checkpoint with the model and, to resume, with the data."""
        # The config in a work directory has this hook, and may be used for evaluation too. Private,
        # since `runner.test_loop` builds the loop.
        if isinstance(runner._test_loop, BaseLoop):
            return
        # mmengine would execute this config, only to read the number of GPUs.
        (checkpoint.get('meta') or {}).pop('config', None)
        if runner._resume:
            check_resumable(checkpoint)
            check_fit(runner.model, checkpoint)
            check_checkpoint_classes(checkpoint, runner.train_dataloader.dataset)
            return
        drop_mismatched_weights(unwrap(runner.model), checkpoint)
        marked = require_fit(checkpoint)
        if 'state_dict' not in checkpoint:  # EMAHook needs it.
            checkpoint.clear()
        checkpoint['state_dict'] = marked.get('state_dict', marked)


def use_atomic_checkpoints(cfg: Config) -> None:
    """Replace mmengine's checkpoint hook in a config by :class:`AtomicCheckpointHook`."""
    hooks: Any = cfg.get('default_hooks') or {}
    # mmengine's default.
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    cfg.default_hooks = hooks
    checkpoint = cfg.default_hooks.checkpoint
    if checkpoint and type_name(checkpoint) == 'CheckpointHook':
        checkpoint.type = 'AtomicCheckpointHook'


def resume_from(cfg: Config, path: str | None = None) -> None:
    """Set ``resume`` and ``load_from`` in a config, and the seed of the checkpoint if it has none.

    Args:
        cfg: The config.
        path: A file or a URL (default: the last complete checkpoint of the work directory, if any).
    """
    if path and '://' in path:
        cfg.resume, cfg.load_from = True, path
        return
    found = (path, read_checkpoint(path)) if path else find_last_checkpoint(cfg.work_dir)
    if found is None:
        print_log(f'{cfg.work_dir} has no checkpoint to resume from. Training starts from scratch.')
        return
    file, checkpoint = found
    cfg.resume, cfg.load_from = True, str(file)
    check_resumable(checkpoint, str(file))
    seed, randomness = checkpoint['meta'].get('seed'), cfg.get('randomness') or {}
    if seed is not None and randomness.get('seed') is None:
        cfg.randomness = {**randomness, 'seed': seed}


def find_last_checkpoint(work_dir: str | Path) -> tuple[Path, dict] | None:
    """Find the last complete checkpoint of a run, and its content; None without checkpoints."""
    paths = list_checkpoints(Path(work_dir))
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except CorruptCheckpointError as error:
            print_log(f'{error} The previous one is used.', level=logging.WARNING)
            continue
        if not missing_state(checkpoint):
            return path, checkpoint
    if paths:
        raise CheckpointError(
            f'Cannot resume from any of the {len(paths)} checkpoints in {work_dir}. Give another '
            'one with --resume CHECKPOINT, or start from scratch without --resume.'
        )
    return None


def list_checkpoints(work_dir: Path) -> list[Path]:
    """List the checkpoints of a run, the last first.

    The file ``last_checkpoint`` is out of date if a run was killed before it was updated. Listed
    are the checkpoint that it names, later ones, and those with lower numbers. Checkpoints with
    higher numbers from an older run in the same directory are not.
    """
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else Path()
    if not named.is_file():
        paths = [path for path in work_dir.rglob('*.pth') if checkpoint_number(path) is not None]
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last, updated = checkpoint_number(named), pointer.stat().st_mtime_ns
    if last is None:
        return [named]
    numbered = [
        (number, path == named, path)
        for path in named.parent.glob('*.pth')
        if (number := checkpoint_number(path)) is not None
        and (path == named or number < last or path.stat().st_mtime_ns > updated)
    ]
    return [path for *_, path in sorted(numbered, reverse=True)]


def checkpoint_number(path: Path) -> int | None:
    """Parse the number in a checkpoint's name, such as ``epoch_3.pth``; best ones have none."""
    match = re.fullmatch(r'(?!best_)\w+_(\d+)\.pth', path.name)
    is_complete = not path.parent.name.startswith(UNFINISHED)
    return int(match[1]) if match and is_complete else None
