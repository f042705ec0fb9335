"""Drawing of predictions by tools/test.py, alike for runners of mmdet and of mmsegmentation."""

import logging

import cv2
from mmengine.logging import print_log


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
