"""Drawing of predictions by tools/test.py, alike for runners of mmdet and of mmsegmentation."""

import logging
from importlib.util import find_spec
from pathlib import Path

import cv2
import mmcv
from mmengine.logging import print_log
from mmengine.registry import HOOKS


class IntervalDrawing:
    """Draws every ``interval``-th test image rather than all of them, as mmpretrain's hook does.

    The tools have one ``--interval`` for all. An image that cannot be read is left out with a
    warning.
    """

    num_seen = 0

    def after_test_iter(self, runner, batch_idx, data_batch, outputs):
        """Draw those of a batch's images whose turn it is."""
        for index, output in enumerate(outputs, start=self.num_seen):
            if index % self.interval == 0:
                self._draw_if_readable(runner, batch_idx, data_batch, output)
        self.num_seen += len(outputs)

    def _draw_if_readable(self, runner, batch_idx, data_batch, output):
        try:
            self._draw(runner, batch_idx, data_batch, output)
        except (OSError, cv2.error):
            print_log(
                f'{output.img_path} cannot be read and is not drawn.',
                logger='current',
                level=logging.WARNING,
            )


if find_spec('mmdet'):
    from mmdet.engine.hooks import DetVisualizationHook

    @HOOKS.register_module()
    class IntervalDetVisualizationHook(IntervalDrawing, DetVisualizationHook):
        """:class:`mmdet.engine.hooks.DetVisualizationHook`, but for every n-th image."""

        def _draw(self, runner, batch_idx, data_batch, output):
            DetVisualizationHook.after_test_iter(self, runner, batch_idx, data_batch, [output])


if find_spec('mmseg'):
    from mmseg.engine.hooks import SegVisualizationHook

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
