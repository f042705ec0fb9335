"""Drawing of predictions in the test command, with the same options for all libraries."""

import logging
from collections.abc import Sequence
from typing import Any

import cv2
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner


class IntervalVisualization(Hook):
    """Mixin that draws every ``interval``-th test image, like mmpretrain's hook.

    The hooks of mmdet and mmsegmentation draw all of them. Unreadable images are skipped with a
    warning.
    """

    interval: int
    num_seen = 0

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw every ``interval``-th image."""
        for index, output in enumerate(outputs, start=self.num_seen):
            if index % self.interval == 0:
                self.draw_if_readable(runner, batch_idx, data_batch, output)
        self.num_seen += len(outputs)

    def draw_if_readable(
        self, runner: Runner, batch_idx: int, data_batch: Any, output: Any
    ) -> None:
        """Draw the predictions of an image, or warn."""
        try:
            self.draw_image(runner, batch_idx, data_batch, output)
        except (OSError, cv2.error):
            print_log(
                f'{output.img_path} cannot be read and is not drawn.',
                logger='current',
                level=logging.WARNING,
            )

    def draw_image(self, runner: Runner, batch_idx: int, data_batch: Any, output: Any) -> None:
        """Draw the predictions of an image."""
        raise NotImplementedError
