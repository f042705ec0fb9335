"""RetinaNet's head with losses that are normalized over all processes."""

from typing import Any

import torch
from mmdet.models import RetinaHead
from mmdet.utils import reduce_mean
from mmengine.registry import MODELS


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """:class:`mmdet.models.RetinaHead` with losses normalized over all processes.

    mmdet divides the losses of each process by its own number of positive anchors, so that an
    object has more weight in a process with few of them. Here, as in mmdet's FCOS and ATSS, the
    gradients of several processes equal those of one process with all images.
    """

    def get_targets(self, *args: Any, **kwargs: Any) -> tuple:
        """Compute the targets of the anchors, and ``avg_factor`` as the mean over the processes."""
        *targets, avg_factor = super().get_targets(*args, **kwargs)
        device = targets[0][0].device
        return *targets, reduce_mean(torch.tensor(float(avg_factor), device=device)).item()
