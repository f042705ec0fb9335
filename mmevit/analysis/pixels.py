"""Pixels compared with segmentation maps: confused classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmevit.utils.files import atomic_write

from .plots import draw_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORED = 255  # label of the pixels that are not counted


@METRICS.register_module()
class PixelConfusionMetric(BaseMetric):
    """Draw which class is predicted for the pixels of each class.

    Args:
        out_file: The picture.
        **kwargs: Arguments of mmengine's metric.
    """

    default_prefix = 'pixels'

    def __init__(self, out_file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.out_file = out_file

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, which the runner passes to each metric."""
        return (self.dataset_meta or {})['classes']

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of some images."""
        count = len(self.classes)
        for sample in data_samples:
            labels, predicted = (
                sample[name]['data'].cpu().numpy().ravel().astype(np.int64)
                for name in ('gt_sem_seg', 'pred_sem_seg')
            )
            kept = labels != IGNORED
            pairs = count * labels[kept] + predicted[kept]
            self.results.append(np.bincount(pairs, minlength=count**2).reshape(count, count))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Draw the sum of the counts; there is no score."""
        figure = plot_pixel_confusions(np.sum(results, axis=0), self.classes)
        with atomic_write(Path(self.out_file)) as path:
            figure.savefig(path, dpi=150)
        return {}


def plot_pixel_confusions(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the percentage of the pixels of each class that are predicted as each class.

    Args:
        counts: Numbers of pixels, by class and by predicted class.
        classes: Names in the order of the counts.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = np.char.mod('%.1f', 100 * shares)
    figure, axes = draw_matrix(shares, texts, classes, classes)
    axes.set(xlabel='predicted as', ylabel='class of the pixels (%)')
    return figure
