"""Drawing of mmsegmentation's predictions in the test command."""

from pathlib import Path
from typing import Any

import mmcv
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook

from .visualization import IntervalVisualization


@HOOKS.register_module()
class IntervalSegVisualizationHook(IntervalVisualization, SegVisualizationHook):
    """:class:`mmseg.engine.hooks.SegVisualizationHook` for every n-th image.

    Args:
        test_out_dir: Directory for the pictures, which have the names of the images.
        **kwargs: Arguments of mmsegmentation's hook.
    """

    def __init__(self, test_out_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.test_out_dir = test_out_dir

    def draw_image(self, runner: Runner, batch_idx: int, data_batch: Any, output: Any) -> None:
        """Draw the predictions of an image."""
        name = Path(output.img_path).name
        self._visualizer.add_datasample(
            name,
            mmcv.imread(output.img_path, channel_order='rgb'),
            output,
            show=self.show,
            wait_time=self.wait_time,
            out_file=self.test_out_dir and str(Path(self.test_out_dir, name)),
        )
