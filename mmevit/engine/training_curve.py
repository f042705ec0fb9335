"""Plot losses and metrics during training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmevit.utils.files import atomic_write

if TYPE_CHECKING:  # the smallest build of mmengine comes without matplotlib
    from matplotlib.figure import Figure


@HOOKS.register_module()
class TrainingCurveHook(Hook):
    """Plot losses and evaluation metrics to the work directory.

    The plot is updated after every evaluation and at the end of training. Resumed runs continue it.

    Args:
        file_name: Name of the picture.
    """

    # After the hooks that record what is plotted here.
    priority = 'LOWEST'

    def __init__(self, file_name: str = 'curves.png') -> None:
        self.file_name = file_name

    def before_val_epoch(self, runner: Runner) -> None:
        """Record the iteration of the metrics, before a checkpoint is saved for them."""
        runner.message_hub.update_scalar('curves/val_iter', runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Plot."""
        self.plot(runner)

    def after_train(self, runner: Runner) -> None:
        """Plot the losses since the last evaluation too."""
        self.plot(runner)

    def plot(self, runner: Runner) -> None:
        """Plot the losses and metrics in the runner's message hub."""
        if runner.rank != 0:
            return
        scalars = runner.message_hub.log_scalars
        figure = plot_curves({name: history.data[0] for name, history in scalars.items()})
        with atomic_write(Path(runner.work_dir, self.file_name)) as path:
            figure.savefig(path, dpi=120)


def plot_curves(histories: Mapping[str, np.ndarray]) -> Figure:
    """Plot losses (left) and metrics (right) over iterations.

    Args:
        histories: By the names of mmengine's message hub, the losses of every iteration, the
            metrics of every evaluation, and the iterations of the evaluations as
            ``'curves/val_iter'``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    for name, values in histories.items():
        if 'train/loss' in name:
            window = max(1, len(values) // 100)
            smooth = values[: len(values) // window * window].reshape(-1, window).mean(1)
            steps = range(window, len(values) + 1, window)
            loss_axes.plot(steps, smooth, label=name.removeprefix('train/'))
        elif is_metric(name) and values.min() >= 0:  # COCO reports -1 for metrics without objects
            steps = histories['curves/val_iter'][-len(values) :]
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
