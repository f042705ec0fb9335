"""A fix of mmcv's RoIAlign for feature maps in channels-last memory format.

It reads them in the wrong order, without an error (open-mmlab/mmcv#2203). Folded backbones return
such maps, and so do models that are trained with ``ChannelsLastHook``.
"""

from mmcv.ops import RoIAlign
from torch import Tensor

ALIGN = RoIAlign.forward


def align_contiguous(self: RoIAlign, input: Tensor, rois: Tensor) -> Tensor:
    """Run ``RoIAlign.forward()`` with contiguous feature maps."""
    return ALIGN(self, input.contiguous(), rois)


RoIAlign.forward = align_contiguous
