"""Drawing of detections, for runners of mmdet."""

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class IntervalDetVisualizationHook(DetVisualizationHook):
    """mmdet's hook, but it draws every ``interval``-th test image rather than all of them.

    mmpretrain's hook does so, and the tools have one ``--interval`` for both.
    """

    num_seen = 0

    def after_test_iter(self, runner, batch_idx, data_batch, outputs):
        """Draw those of a batch's images whose turn it is."""
        chosen = [
            output
            for index, output in enumerate(outputs, start=self.num_seen)
            if index % self.interval == 0
        ]
        self.num_seen += len(outputs)
        super().after_test_iter(runner, batch_idx, data_batch, chosen)
