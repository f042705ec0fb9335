"""RetinaNet's head, with the losses of several processes together."""

import torch
from mmdet.models import RetinaHead
from mmdet.utils import reduce_mean
from mmengine.registry import MODELS


@MODELS.register_module()
class SyncedRetinaHead(RetinaHead):
    """:class:`mmdet.models.RetinaHead` whose losses are over the objects of all processes.

    mmdet divides the losses of each process by its own number of matched anchors, so that an object
    weighs more where there are few. Here, as in mmdet's FCOS and ATSS, several processes have the
    gradients of one with all their images. In one process it is the same.

    Args:
        **kwargs: The arguments of :class:`mmdet.models.RetinaHead`.
    """

    def get_targets(self, *args, **kwargs):
        """Find the targets of the anchors.

        Returns:
            tuple: As mmdet's; the last is the number of matched anchors, a mean over the processes.
        """
        *targets, num_matched = super().get_targets(*args, **kwargs)
        device = targets[0][0].device
        return *targets, reduce_mean(torch.tensor(float(num_matched), device=device)).item()
