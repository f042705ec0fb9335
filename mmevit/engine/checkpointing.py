"""Checkpoints that outlive what ends a run: a kill, a full disk, weights that are not finite."""

import logging
import os
from pathlib import Path

import torch
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from mmevit.checkpoint import read_checkpoint
from mmevit.errors import CheckpointError, UserError, shorten
from mmevit.files import remove_leftovers, written_whole

from .hooks import is_finite


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """:class:`mmengine.hooks.CheckpointHook` that always leaves a whole checkpoint to go on from.

    A checkpoint is written under another name and then renamed, and what it replaces is removed
    only then, while mmengine's hook removes first. A run whose weights are no longer finite ends
    instead of keeping them. Gradients that are being accumulated are kept too, those of the first
    process. The tools put it in the place of mmengine's; elsewhere::

        default_hooks = dict(checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3))

    Args:
        backend_args (dict, optional): Where to, unless to a disk, as mmengine's hook takes it.
        **kwargs: The other arguments of :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        CheckpointError: If a checkpoint cannot be written, such as to a full disk, or the weights
            are not finite; it names the last whole one.
    """

    def __init__(self, *args, backend_args=None, **kwargs):
        super().__init__(*args, backend_args=backend_args or dict(backend='whole'), **kwargs)

    def before_train(self, runner):
        """Clear away what a killed run has left half written."""
        super().before_train(runner)
        if runner.rank == 0:
            remove_leftovers(runner.work_dir)
        self.file_backend = RemovingLast(self.file_backend)

    def before_save_checkpoint(self, runner, checkpoint):
        """Check the weights, and add the gradients of an unfinished accumulation."""
        # With an average of the weights, the weights themselves are in its place.
        weights = [*checkpoint['state_dict'].items(), *checkpoint.get('ema_state_dict', {}).items()]
        broken = [
            name for name, weight in weights if torch.is_tensor(weight) and not is_finite(weight)
        ]
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
        if runner.rank > 0 and hasattr(optimizer, 'consolidate_state_dict'):
            # Only the first process saves, and waits for these parts of the state.
            optimizer.consolidate_state_dict()
        self.file_backend.remove_now()

    def _save_best_checkpoint(self, runner, metrics):
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()


@register_backend('whole')
class WholeFileBackend(LocalBackend):
    """:class:`mmengine.fileio.LocalBackend` whose files appear whole or not at all."""

    def put(self, obj, filepath):
        """Write bytes, and wait until they are on the disk."""
        with written_whole(filepath) as path, path.open('wb') as file:
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

    def remove_now(self):
        """Remove those files."""
        while self.paths:
            self.backend.remove(self.paths.pop())


def unwrap(model):
    """Take a model out of what distributes it."""
    return model.module if is_model_wrapper(model) else model


# What a checkpoint needs to go on from, besides weights, in it or in its ``meta``.
RESUMED = {'meta', 'epoch', 'iter', 'message_hub', 'optimizer'}


def save_safely(cfg):
    """Put :class:`SafeCheckpointHook` in the place of mmengine's hook.

    Args:
        cfg (Config): The config.

    Example:
        >>> from mmengine.config import Config
        >>> cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook'))))
        >>> save_safely(cfg)
        >>> cfg.default_hooks.checkpoint
        {'type': 'SafeCheckpointHook'}
    """
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    if hook.get('type') in ('CheckpointHook', CheckpointHook):
        hook.type = 'SafeCheckpointHook'


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
    cfg.resume = True
    if path and '://' in path:
        cfg.load_from = path
        return
    path, checkpoint = (path, read_checkpoint(path)) if path else find_last_whole(cfg.work_dir)
    cfg.load_from = path and str(path)
    if path is None:
        print_log(f'{cfg.work_dir} has no checkpoint to go on from: training starts anew.')
        return
    if missing := RESUMED - {*checkpoint, *(checkpoint.get('meta') or {})}:
        raise CheckpointError(
            f'{path} has no {", ".join(sorted(missing))}, and so cannot be gone on from: to start '
            'from its weights, give --cfg-options load_from=... instead of --resume.'
        )
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
            return path, read_checkpoint(path)
        except CheckpointError as error:
            print_log(f'{error} The one before it is taken.', level=logging.WARNING)
    if paths:
        raise CheckpointError(
            f'None of the {len(paths)} checkpoints in {work_dir} is whole: name another one by '
            '--resume CHECKPOINT, or start anew without --resume.'
        )
    return None, None


def list_checkpoints(work_dir):
    """List the checkpoints to resume from, the last first.

    Args:
        work_dir (Path): The work directory.

    Returns:
        list[Path]: Files: what ``last_checkpoint`` names, which a kill can leave behind by one,
        and what was written after and before it.
    """
    pointer = work_dir / 'last_checkpoint'
    named = Path(pointer.read_text().strip()) if pointer.is_file() else None
    folder = named.parent if named and named.is_file() else work_dir
    paths = [path for kind in ('epoch', 'iter') for path in folder.glob(f'{kind}_*.pth')]
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path == named), reverse=True)
