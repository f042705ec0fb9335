"""Drawing of mmdet's predictions in the test command."""

from typing import Any

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .visualization import IntervalVisualization


@HOOKS.register_module()
class IntervalDetVisualizationHook(IntervalVisualization, DetVisualizationHook):
    """:class:`mmdet.engine.hooks.DetVisualizationHook` for every n-th image."""

    def draw_image(self, runner: Runner, batch_idx: int, data_batch: Any, output: Any) -> None:
        """Draw the predictions of an image."""
        DetVisualizationHook.after_test_iter(self, runner, batch_idx, data_batch, [output])
