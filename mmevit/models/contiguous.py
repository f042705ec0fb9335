"""A patch of mmcv's operators for tensors in channels-last memory format.

RoIAlign and modulated deformable convolution read them in the wrong order, without an error
(open-mmlab/mmcv#2203), and deformable convolution fails. Folded backbones return such maps, and
models that are trained with ``ChannelsLastHook`` also have such weights.
"""

from collections.abc import Callable
from typing import Any

from mmcv.ops.deform_conv import DeformConv2dFunction
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
from mmcv.ops.roi_align import RoIAlignFunction
from torch import Tensor


def make_contiguous(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let ``forward()`` of an autograd function copy tensors that are not contiguous."""

    def forward_contiguous(ctx: Any, *args: Any) -> Tensor:
        return forward(ctx, *(x.contiguous() if isinstance(x, Tensor) else x for x in args))

    return forward_contiguous


for function in (DeformConv2dFunction, ModulatedDeformConv2dFunction, RoIAlignFunction):
    function.forward = staticmethod(make_contiguous(function.forward))
