"""Hooks for compilation, memory layout, invalid losses and plots of losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from packaging.version import Version

from mmevit.utils.errors import ConfigError, UserError, shorten
from mmevit.utils.files import atomic_write
from mmevit.utils.pytorch import unwrap

if TYPE_CHECKING:  # the smallest build of mmengine comes without matplotlib
    from matplotlib.figure import Figure

# PyTorch's initial loss scale, 2**16, is below 1 after this number of skipped steps.
MAX_OVERFLOWS = 17
# The smallest normal number of float16: gradients of 2**30 would not overflow.
MIN_LOSS_SCALE = 2**-14


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the backbone with ``torch.compile`` before training.

    mmengine's own ``compile=True`` compiles whole training steps, with graph breaks at the data,
    the losses and the optimizer. The names of weights in checkpoints do not change. A second image
    size compiles once more, for any size. On a CPU the first step takes minutes::

        custom_hooks = [dict(type='CompileHook', parts=('backbone', 'neck'))]

    Args:
        parts: Names of the submodules to compile.
        **options: Arguments of :func:`torch.compile`.

    Raises:
        ConfigError: If the model has no such part, or PyTorch is too old.
    """

    # After the hooks that change or copy the model.
    priority = 'LOWEST'

    def __init__(self, parts: str | Sequence[str] = 'backbone', **options: Any) -> None:
        self.parts = [parts] if isinstance(parts, str) else parts
        self.options = options

    def before_train(self, runner: Runner) -> None:
        """Set the parts to be compiled at their first call."""
        if Version(torch.__version__) < Version('2.5'):
            raise ConfigError(
                f'PyTorch {torch.__version__} is too old for CompileHook: gradients of models '
                'compiled with 2.1 are wrong. Install 2.5 or newer, or remove the hook.'
            )
        model = unwrap(runner.model)
        modules = dict(model.named_modules())
        for part in self.parts:
            if part not in modules:
                raise ConfigError(
                    f'CompileHook: {type(model).__name__} has no submodule {part!r}. Set parts to '
                    'names of submodules of the model.'
                )
            modules[part].compile(**self.options)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Train in the channels-last memory format.

    Convolutions are faster in it, on CPUs and in mixed precision on GPUs. Results are equal up to
    rounding; checkpoints are the same.
    """

    def before_train(self, runner: Runner) -> None:
        """Convert the weights after they are loaded; feature maps follow their layout."""
        runner.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop training at an infinite or NaN loss, before the weights are saved.

    mmengine continues training with NaN weights. mmdet's ``CheckInvalidLossHook`` checks every 50th
    loss and does not name the images. In float16 with dynamic loss scaling, up to
    :data:`MAX_OVERFLOWS` invalid losses in a row are tolerated, since the scaler skips steps with
    invalid gradients and lowers the scale. Training commands add this hook; elsewhere set
    ``custom_hooks = [dict(type='InvalidLossHook')]``.

    Raises:
        UserError: If a loss is not finite, or gradients overflow in every step.
    """

    num_overflows = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check the losses and the loss scale."""
        iteration, scale = runner.iter + 1, dynamic_loss_scale(runner.optim_wrapper)
        if scale is not None and scale < MIN_LOSS_SCALE:
            raise UserError(
                f'The loss scale has fallen to {scale:g} in iteration {iteration}: gradients '
                'overflow in every step, and no weights are updated. Train in bfloat16 '
                '(optim_wrapper.dtype=bfloat16) or float32, or lower the learning rate.'
            )
        losses = {
            name: torch.as_tensor(value).detach().float().mean().item()
            for name, value in (outputs or {}).items()
            if 'loss' in name
        }
        if all(map(math.isfinite, losses.values())):
            self.num_overflows = 0
            return
        values = ', '.join(f'{name} {value:g}' for name, value in losses.items())
        self.num_overflows += 1
        if scale is not None and self.num_overflows <= MAX_OVERFLOWS:
            runner.logger.warning(
                f'The loss is not finite in iteration {iteration} ({values}). Dynamic loss '
                f'scaling skips the step if the gradients are not finite either (scale {scale:g}).'
            )
            return
        images = list_images(data_batch)
        runner.logger.error(f'Images of iteration {iteration}: {", ".join(images)}')
        checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
        hint = f'Then resume from {checkpoint} with --resume.'
        raise UserError(
            f'The loss is not finite in iteration {iteration} of epoch {runner.epoch + 1} '
            f'({values}; images {shorten(images)}). Lower the learning rate, clip gradients with '
            'optim_wrapper.clip_grad, or fix the data. '
            f'{hint if checkpoint else "No checkpoint was written."}'
        )


def dynamic_loss_scale(wrapper: Any) -> float | None:
    """Return the loss scale of float16 training, None in other precisions or if it is fixed."""
    scaler: Any = getattr(wrapper, 'loss_scaler', None)
    # mmengine has no public way to tell a fixed scale from a dynamic one.
    is_fixed = getattr(wrapper, '_scale_update_param', None) is not None
    is_half = getattr(wrapper, 'cast_dtype', None) in (None, torch.float16)
    if scaler is None or not scaler.is_enabled() or is_fixed or not is_half:
        return None
    return scaler.get_scale()


def list_images(data_batch: Any) -> list[str]:
    """List the paths or indices of the samples in a batch."""
    samples = (data_batch.get('data_samples') if isinstance(data_batch, dict) else None) or []
    # Samples of several views of an image are in a dict.
    samples = sum(samples.values(), []) if isinstance(samples, dict) else samples
    return [str(sample.get('img_path', sample.get('sample_idx'))) for sample in samples]


@HOOKS.register_module()
class TrainingCurveHook(Hook):
    """Plot losses and evaluation metrics to the work directory.

    The plot, ``curves.png``, is updated after every evaluation and at the end of training. Resumed
    runs continue it.
    """

    # After the hooks that record the plotted values.
    priority = 'LOWEST'

    def before_val_epoch(self, runner: Runner) -> None:
        """Record the iteration of the metrics, before a checkpoint is saved for them."""
        runner.message_hub.update_scalar('curves/val_iter', runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Plot."""
        self.plot(runner)

    def after_train(self, runner: Runner) -> None:
        """Plot the losses since the last evaluation too."""
        self.plot(runner)

    @master_only
    def plot(self, runner: Runner) -> None:
        """Plot the losses and metrics in the runner's message hub."""
        scalars = runner.message_hub.log_scalars.items()
        figure = plot_curves({name: history.data[0] for name, history in scalars})
        with atomic_write(Path(runner.work_dir, 'curves.png')) as path:
            figure.savefig(path, dpi=120)


def plot_curves(histories: Mapping[str, np.ndarray]) -> Figure:
    """Plot losses (left) and metrics (right) over iterations.

    Args:
        histories: By the names of mmengine's message hub, the losses of every iteration, the
            metrics of every evaluation, and its iteration as ``'curves/val_iter'``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    evaluated = histories.get('curves/val_iter', [])
    for name, values in histories.items():
        if 'train/loss' in name:
            window = max(1, len(values) // 100)
            smooth = values[: len(values) // window * window].reshape(-1, window).mean(1)
            steps = range(window, len(values) + 1, window)
            loss_axes.plot(steps, smooth, label=name.removeprefix('train/'))
        # COCO reports -1 for metrics without objects.
        elif is_metric(name) and len(evaluated) and values.min() >= 0:
            # A run that is resumed may have evaluated before it had this hook.
            count = min(len(evaluated), len(values))
            steps, values = evaluated[-count:], values[-count:]
            metric_axes.plot(steps, values, marker='o', label=name.removeprefix('val/'))
    loss_axes.set(xlabel='iteration', ylabel='loss', title='Training', ylim=(0, None))
    metric_axes.set(xlabel='iteration', title='Evaluation', ylim=(0, None))
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def is_metric(name: str) -> bool:
    """Whether a name of mmengine's message hub is that of an evaluation metric."""
    return name.startswith('val/') and 'time' not in name and name != 'val/unreadable_images'
