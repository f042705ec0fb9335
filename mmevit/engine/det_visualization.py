"""The pictures of mmdet's predictions that tools/test.py draws."""

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.registry import HOOKS

from .visualization import IntervalDrawing


@HOOKS.register_module()
class IntervalDetVisualizationHook(IntervalDrawing, DetVisualizationHook):
    """:class:`mmdet.engine.hooks.DetVisualizationHook`, but for every n-th image."""

    def _draw(self, runner, batch_idx, data_batch, output):
        DetVisualizationHook.after_test_iter(self, runner, batch_idx, data_batch, [output])
