"""The neck for dense prediction: FPN with levels finer than the backbone's."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmevit.utils.versions import can_import

from .layers import fold_norm

# mmsegmentation has a copy of mmdet's FPN, for an installation without mmdet.
if can_import('mmdet'):
    from mmdet.models.necks import FPN
else:
    from mmseg.models.necks import FPN


@MODELS.register_module()
class EfficientViTFPN(FPN):  # pyright: ignore[reportGeneralTypeIssues]
    """FPN with additional finer levels, since the backbone starts at stride 16.

    Each finer level is a 2x2 transposed convolution of the next coarser lateral, followed by a 3x3
    convolution. The first one starts from the finest lateral of FPN, after the top-down sum. The
    rest is mmdet's FPN.

    The outputs can match the channels and strides of another backbone:
    ``out_channels=[512, 1024, 2048], num_outs=3`` are those of a ResNet at strides 8, 16 and 32.

    Args:
        in_channels: Channels of each backbone map, finest first, of at least two maps.
        out_channels: One int, or one per output. The pyramid has min(out_channels) channels; 1x1
            convolutions project to wider outputs.
        num_outs: Number of outputs, finest first: the finer levels, then those of the backbone's
            maps, then coarser ones. If it is too small for all of the backbone's maps, the coarsest
            are only used in the top-down sum.
        num_upsample_levels: Number of finer levels. 1 extends the pyramid to stride 8, as for
            RetinaNet; 2 extends it to stride 4, as for Mask R-CNN. 0 adds none, for a backbone that
            returns its stem's map of stride 8.
        deploy: Whether to build the folded form, to load the weights of a neck after
            :meth:`switch_to_deploy`.
        **kwargs: The other arguments of :class:`mmdet.models.necks.FPN`.

    Example:
        >>> import torch
        >>> from mmevit.models import EfficientViT, EfficientViTFPN
        >>> backbone = EfficientViT('m0').eval()
        >>> neck = EfficientViTFPN(list(backbone.out_channels), 32, num_outs=4)
        >>> for level in neck(backbone(torch.rand(1, 3, 64, 128))):
        ...     print(tuple(level.shape))
        (1, 32, 8, 16)
        (1, 32, 4, 8)
        (1, 32, 2, 4)
        (1, 32, 1, 2)
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int | Sequence[int],
        num_outs: int,
        num_upsample_levels: int = 1,
        deploy: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(in_channels, int):
            raise ValueError(
                f'in_channels={in_channels} is not a list. Pass the channels of each map.'
            )
        end_level = kwargs.get('end_level', -1)
        end = None if end_level == -1 else end_level + 1
        num_levels = len(in_channels[kwargs.get('start_level', 0) : end])
        if num_levels < 2:
            raise ValueError(
                f'in_channels={in_channels} has {num_levels} values from start_level to end_level. '
                'Pass the channels of at least two backbone maps.'
            )
        if num_upsample_levels < 0:
            raise ValueError(
                f'num_upsample_levels={num_upsample_levels} is out of range. Pass at least 0.'
            )
        num_coarser = num_outs - num_upsample_levels
        if num_coarser < 1:
            raise ValueError(
                f'num_outs={num_outs} is too small for {num_upsample_levels} finer levels and the '
                f'finest map of the backbone. Pass at least {num_upsample_levels + 1}.'
            )
        widths = [out_channels] * num_outs if isinstance(out_channels, int) else out_channels
        if len(widths) != num_outs:
            raise ValueError(
                f'out_channels={list(widths)} has {len(widths)} values. Pass one number, or one '
                f'for each of the {num_outs} outputs.'
            )
        if deploy:
            kwargs['norm_cfg'] = None
        width = min(widths)
        super().__init__(list(in_channels), width, max(num_coarser, num_levels), **kwargs)
        conv_cfgs = {name: kwargs.get(name) for name in ('conv_cfg', 'norm_cfg', 'act_cfg')}
        self.num_upsample_levels = num_upsample_levels
        if num_upsample_levels:
            self.fpn_convs[0] = FinestLevels(width, num_upsample_levels, **conv_cfgs)
        # FPN requires an output for each map. DDP fails on the parameters of unused ones.
        for unused in range(num_coarser, num_levels):
            self.fpn_convs[unused] = nn.Identity()
        self.projections = nn.ModuleList(
            nn.Identity() if channels == width else nn.Conv2d(width, channels, 1)
            for channels in widths
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the pyramid from the backbone's maps, both finest first.

        Raises:
            ValueError: If there are more or fewer maps than ``in_channels``.
        """
        if len(inputs) != self.num_ins:
            raise ValueError(
                f'The neck is built for {self.num_ins} maps (in_channels={self.in_channels}), but '
                f'the backbone returns {len(inputs)}. Change in_channels, or out_indices of the '
                'backbone.'
            )
        levels = list(super().forward(inputs))
        if self.num_upsample_levels:
            # The first output of FPN is what FinestLevels returns. FPN passes it on.
            levels[:1] = levels[0]
        # There are num_outs projections, and there may be more levels.
        outputs = zip(self.projections, levels, strict=False)
        return tuple(projection(level) for projection, level in outputs)

    def switch_to_deploy(self) -> None:
        """Fold the norm layers, if any, into the convolutions; see :func:`fold_norm`."""
        for module in self.modules():
            if isinstance(module, ConvModule) and module.with_norm:
                fold_norm(module.conv, module.norm)  # pyright: ignore[reportArgumentType]
                setattr(module, str(module.norm_name), nn.Identity())
                module.with_norm = False


class FinestLevels(ConvModule):
    """The 3x3 convolution of the finest backbone level, and the finer levels.

    It replaces ``fpn_convs[0]``, the only layer of FPN that gets the finest lateral after the
    top-down sum.
    """

    def __init__(self, channels: int, num_upsample_levels: int, **kwargs: Any) -> None:
        conv3x3: dict[str, Any] = dict(kernel_size=3, padding=1, inplace=False, **kwargs)
        deconv = dict(type='deconv')
        upsample = dict(conv3x3, kernel_size=2, stride=2, padding=0, conv_cfg=deconv)
        super().__init__(channels, channels, **conv3x3)
        self.upsamples = nn.ModuleList(
            ConvModule(channels, channels, **upsample) for _ in range(num_upsample_levels)
        )
        self.finer_convs = nn.ModuleList(
            ConvModule(channels, channels, **conv3x3) for _ in range(num_upsample_levels)
        )

    def forward(self, lateral: Tensor) -> list[Tensor]:
        """Map the finest lateral to the levels, finest first, the last of which has its size."""
        levels = [super().forward(lateral)]
        for upsample, conv in zip(self.upsamples, self.finer_convs, strict=True):
            lateral = upsample(lateral)
            levels.insert(0, conv(lateral))
        return levels
