"""Checkpoints that outlive what ends a run: a kill, a full disk, weights that are not finite."""

import logging
import os
import re
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop

from mmevit.checkpoint import read_checkpoint
from mmevit.checkpoint.matching import check_resumable, list_nonfinite, missing_state
from mmevit.utils.configs import type_name
from mmevit.utils.errors import CheckpointError, CorruptCheckpointError, UserError, shorten
from mmevit.utils.files import UNFINISHED, atomic_write, remove_leftovers
from mmevit.utils.models import unwrap


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """:class:`mmengine.hooks.CheckpointHook` that always leaves a whole checkpoint to go on from.

    A checkpoint is written under another name and then renamed, and what it replaces is removed
    only then, while mmengine's hook removes first. A run whose weights are no longer finite ends
    instead of keeping them. Gradients that are being accumulated are kept too, those of the first
    process. The tools put it in the place of mmengine's; elsewhere::

        default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=3))

    Args:
        backend_args (dict, optional): Where to, unless to a disk, as mmengine's hook takes it.
        **kwargs: The other arguments of :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        CheckpointError: If a checkpoint cannot be written, such as to a full disk, or the weights
            are not finite; it names the last whole one.
    """

    def __init__(self, *args, backend_args=None, **kwargs):
        is_remote = '://' in (kwargs.get('out_dir') or '') or kwargs.get('file_client_args')
        if backend_args is None and not is_remote:
            backend_args = dict(backend='whole')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def before_train(self, runner):
        """Clear away what a killed run has left half written, and evaluate what it has not."""
        super().before_train(runner)
        if runner.rank == 0:
            remove_leftovers(self.out_dir)
        self.file_backend = RemovingLast(self.file_backend)
        if is_evaluation_due(runner):
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics):
        """Take note that this is evaluated."""
        runner.message_hub.update_info('evaluated_iter', runner.iter)
        super().after_val_epoch(runner, metrics)

    def before_save_checkpoint(self, runner, checkpoint):
        """Check the weights, and add the gradients of an unfinished accumulation."""
        # With an average of the weights, the weights themselves are in its place.
        weights = [*checkpoint['state_dict'].items(), *checkpoint.get('ema_state_dict', {}).items()]
        broken = list_nonfinite(weights, unwrap(runner.model))
        if broken:
            raise CheckpointError(
                f'The weights are no longer finite, {shorten(broken)}: lower the learning rate, or '
                'clip gradients by optim_wrapper.clip_grad.'
            )
        wrapper = runner.optim_wrapper
        if getattr(wrapper, '_inner_count', 0) % getattr(wrapper, '_accumulative_counts', 1):
            checkpoint['gradients'] = {
                name: parameter.grad.cpu()
                for name, parameter in unwrap(runner.model).named_parameters()
                if parameter.grad is not None
            }

    def after_load_checkpoint(self, runner, checkpoint):
        """Take up the gradients of an unfinished accumulation."""
        parameters = dict(unwrap(runner.model).named_parameters())
        for name, gradient in checkpoint.pop('gradients', {}).items():
            if runner._resume:
                parameters[name].grad = gradient.to(parameters[name])

    def _save_checkpoint_with_step(self, runner, step, meta):
        previous = runner.message_hub.runtime_info.get('last_ckpt')
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        except UserError as error:
            hint = f'go on from {previous} by --resume' if previous else 'none was written before'
            raise CheckpointError(f'{str(error).rstrip(".")}; {hint}.') from error
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        is_sharded = hasattr(optimizer, 'consolidate_state_dict')
        if runner.rank > 0 and is_sharded and self.save_optimizer:
            # Only the first process saves, and waits for these parts of the state.
            optimizer.consolidate_state_dict()
        self._remove_replaced()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        if self.save_best:
            self._remove_replaced()

    def _remove_replaced(self):
        several = getattr(self, 'best_ckpt_path_dict', {}).values()
        best = getattr(self, 'best_ckpt_path', None)
        self.file_backend.remove_but(self.last_ckpt, best, *several)


@register_backend('whole')
class WholeFileBackend(LocalBackend):
    """:class:`mmengine.fileio.LocalBackend` whose files appear whole or not at all."""

    def put(self, obj, filepath):
        """Write bytes, and wait until they are on the disk."""
        with atomic_write(filepath) as path, path.open('wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())


class RemovingLast:
    """A file backend that puts off all removals.

    Args:
        backend (BaseStorageBackend): What does everything else.
    """

    def __init__(self, backend):
        self.backend, self.paths = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, filepath):
        """Remember a file that is to be removed."""
        self.paths.append(filepath)

    def remove_but(self, *written):
        """Remove those files, but not what has been written in their place.

        Args:
            *written (str | None): The files that were.
        """
        while self.paths:
            path = self.paths.pop()
            if path not in written:
                self.backend.remove(path)


def is_evaluation_due(runner):
    """Whether a resumed run was left before it had evaluated its checkpoint.

    Args:
        runner (Runner): The runner, before training.

    Returns:
        bool: Whether it was.
    """
    loop = runner.train_loop
    if runner.val_loop is None or runner.iter == 0:
        return False
    if runner.message_hub.runtime_info.get('evaluated_iter') == runner.iter:
        return False
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    if by_epoch and runner.iter != runner.epoch * len(loop.dataloader):
        return False
    done, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


def save_safely(cfg):
    """Put :class:`AtomicCheckpointHook` in the place of mmengine's hook.

    Args:
        cfg (Config): The config.

    Example:
        >>> from mmengine.config import Config
        >>> cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook'))))
        >>> save_safely(cfg)
        >>> cfg.default_hooks.checkpoint
        {'type': 'AtomicCheckpointHook'}
    """
    hooks = cfg.get('default_hooks') or {}
    if 'checkpoint' not in hooks:
        # mmengine would save by its own, once an epoch.
        own = dict(type='AtomicCheckpointHook', interval=1)
        cfg.merge_from_dict({'default_hooks.checkpoint': own})
    elif hooks.checkpoint and type_name(hooks.checkpoint) == 'CheckpointHook':
        hooks.checkpoint.type = 'AtomicCheckpointHook'


def resume_from(cfg, path=None):
    """Have a config resume from a checkpoint.

    Without a seed in the config, that of the checkpoint is taken, for the order of the data.

    Args:
        cfg (Config): The config, whose ``resume``, ``load_from`` and ``randomness`` are set.
        path (str, optional): The checkpoint, a file or a URL. Defaults to the last whole one of the
            work directory, if there is one.

    Raises:
        CheckpointError: If it is not whole, or holds weights alone, or there are checkpoints in the
            work directory, but none is whole.
    """
    if path and '://' in path:
        cfg.resume, cfg.load_from = True, path
        return
    path, checkpoint = (path, read_checkpoint(path)) if path else find_last_whole(cfg.work_dir)
    if path is None:
        print_log(f'{cfg.work_dir} has no checkpoint to go on from: training starts anew.')
        return
    cfg.resume, cfg.load_from = True, str(path)
    check_resumable(checkpoint, path)
    seed = checkpoint['meta'].get('seed')
    if seed is not None and (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}


def find_last_whole(work_dir):
    """Find the last checkpoint of a run that can be read to its end.

    Args:
        work_dir (str | Path): Its work directory.

    Returns:
        tuple[Path | None, dict | None]: The file and its content, or None if there is no file.

    Raises:
        CheckpointError: If there are files, but none is whole.
    """
    paths = list_checkpoints(Path(work_dir))
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except CorruptCheckpointError as error:
            print_log(f'{error} The one before it is taken.', level=logging.WARNING)
            continue
        if not missing_state(checkpoint):
            return path, checkpoint
    if paths:
        raise CheckpointError(
            f'None of the {len(paths)} checkpoints in {work_dir} can be resumed from: name another '
            'one by --resume CHECKPOINT, or start anew without --resume.'
        )
    return None, None


def list_checkpoints(work_dir):
    """List the checkpoints to resume from, the last first.

    Args:
        work_dir (Path): The work directory.

    Returns:
        list[Path]: Files: what was written after the one that ``last_checkpoint`` names, since a
        kill can leave that behind; that one; and those of lower numbers.
    """
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else Path()
    if not named.is_file():
        paths = [
            path
            for path in work_dir.rglob('*.pth')
            # Of what was killed while it wrote its first one, nothing counts.
            if number_of(path) is not None and not path.parent.name.startswith(UNFINISHED)
        ]
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    pointed_at = pointer.stat().st_mtime_ns
    paths = [
        path
        for path in named.parent.glob('*.pth')
        if number_of(path) is not None
        and number_of(named) is not None
        and path != named
        and (number_of(path) < number_of(named) or path.stat().st_mtime_ns > pointed_at)
    ]
    return sorted([named, *paths], key=lambda path: number_of(path) or 0, reverse=True)


def number_of(path):
    """Read the number in the name of a checkpoint.

    Args:
        path (Path): Such as ``epoch_3.pth``; the best ones have names of their own.

    Returns:
        int | None: The number, or None if there is none.
    """
    match = re.fullmatch(r'(?!best_)\w+_(\d+)\.pth', path.name)
    return int(match[1]) if match else None
