"""Drawing of predictions in the test command, with the same options for all libraries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmevit.utils.errors import warn
from mmevit.utils.versions import can_import


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
            if index % self.interval:
                continue
            try:
                self.draw_image(runner, batch_idx, data_batch, output)
            except (OSError, cv2.error):
                warn(f'{output.img_path} cannot be read and is not drawn.')
        self.num_seen += len(outputs)

    def draw_image(self, runner: Runner, batch_idx: int, data_batch: Any, output: Any) -> None:
        """Draw the predictions of an image."""
        super().after_test_iter(runner, batch_idx, data_batch, [output])


if can_import('mmdet'):
    from mmdet.engine.hooks import DetVisualizationHook

    @HOOKS.register_module()
    class IntervalDetVisualizationHook(IntervalVisualization, DetVisualizationHook):
        """:class:`mmdet.engine.hooks.DetVisualizationHook` for every n-th image."""


if can_import('mmseg'):
    from mmseg.engine.hooks import SegVisualizationHook

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
