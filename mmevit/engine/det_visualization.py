"""Drawing of detections, for runners of mmdet."""

import logging

import cv2
from mmdet.engine.hooks import DetVisualizationHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS


@HOOKS.register_module()
class IntervalDetVisualizationHook(DetVisualizationHook):
    """mmdet's hook, but it draws every ``interval``-th test image rather than all of them.

    mmpretrain's hook does so, and the tools have one ``--interval`` for both. An image that cannot
    be read is left out with a warning.
    """

    num_seen = 0

    def after_test_iter(self, runner, batch_idx, data_batch, outputs):
        """Draw those of a batch's images whose turn it is."""
        for index, output in enumerate(outputs, start=self.num_seen):
            if index % self.interval == 0:
                self._draw(runner, batch_idx, data_batch, output)
        self.num_seen += len(outputs)

    def _draw(self, runner, batch_idx, data_batch, output):
        try:
            super().after_test_iter(runner, batch_idx, data_batch, [output])
        except (OSError, cv2.error):
            print_log(
                f'{output.img_path} cannot be read and is not drawn.',
                logger='current',
                level=logging.WARNING,
            )
