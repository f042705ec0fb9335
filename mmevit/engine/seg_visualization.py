"""The pictures of mmsegmentation's predictions that tools/test.py draws."""

from pathlib import Path

import mmcv
from mmengine.registry import HOOKS
from mmseg.engine.hooks import SegVisualizationHook

from .visualization import IntervalDrawing


@HOOKS.register_module()
class IntervalSegVisualizationHook(IntervalDrawing, SegVisualizationHook):
    """:class:`mmseg.engine.hooks.SegVisualizationHook`, but for every n-th image.

    Args:
        test_out_dir (str, optional): Folder for the pictures, each under its image's name.
        **kwargs: The arguments of mmsegmentation's hook.
    """

    def __init__(self, test_out_dir=None, **kwargs):
        super().__init__(**kwargs)
        self.test_out_dir = test_out_dir

    def _draw(self, runner, batch_idx, data_batch, output):
        name = Path(output.img_path).name
        self._visualizer.add_datasample(
            name,
            mmcv.imread(output.img_path, channel_order='rgb'),
            output,
            show=self.show,
            wait_time=self.wait_time,
            out_file=self.test_out_dir and str(Path(self.test_out_dir, name)),
        )
