"""The neck for dense prediction: FPN, continued to finer levels than the backbone has."""

from importlib.util import find_spec

from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from .layers import fold_norm

# mmsegmentation has a copy of mmdet's, for those who have only that.
if find_spec('mmdet'):
    from mmdet.models.necks import FPN
else:
    from mmseg.models.necks import FPN


@MODELS.register_module()
class EfficientViTFPN(FPN):
    """Feature pyramid that grows downwards too, since the backbone starts at stride 16.

    From the finest lateral, after the top-down sum, chained transposed convolutions make finer
    laterals, and each of them is followed by its own 3x3 convolution. All else is mmdet's FPN.

    It also stands in for another backbone's maps, in front of a neck or head that is made for them:
    ``out_channels=[512, 1024, 2048], num_outs=3`` gives those of a ResNet at strides 8, 16 and 32.

    Args:
        in_channels (list[int]): Channels of each backbone map, finest first; at least two maps.
        out_channels (int | list[int]): Channels of every output, or of each one. The pyramid itself
            is as wide as the narrowest.
        num_outs (int): Number of outputs, finest first: those made finer, those of the backbone's
            maps, and coarser ones if it is more than both. If it is fewer, the coarsest maps only
            take part in the top-down sum.
        num_upsample_levels (int): Number of finer levels. 1 takes the pyramid to stride 8, as for
            RetinaNet; 2 takes it to stride 4, as for Mask R-CNN. Defaults to 1.
        deploy (bool): Whether to build the folded form, to load the weights of a neck after
            :meth:`switch_to_deploy`. Defaults to False.
        **kwargs: The other arguments of :class:`mmdet.models.necks.FPN`.

    Raises:
        ValueError: If the numbers of maps and outputs do not fit.

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
        self, in_channels, out_channels, num_outs, num_upsample_levels=1, deploy=False, **kwargs
    ):
        if deploy:
            kwargs['norm_cfg'] = None
        widths = [out_channels] * num_outs if isinstance(out_channels, int) else out_channels
        num_levels = self._count_levels(
            in_channels, widths, num_outs, num_upsample_levels, **kwargs
        )
        width = min(widths)
        num_coarser = num_outs - num_upsample_levels
        super().__init__(list(in_channels), width, max(num_coarser, num_levels), **kwargs)
        conv_cfgs = {name: kwargs.get(name) for name in ('conv_cfg', 'norm_cfg', 'act_cfg')}
        self.fpn_convs[0] = FinestLevels(width, num_upsample_levels, **conv_cfgs)
        for unused in range(num_coarser, num_levels):
            self.fpn_convs[unused] = nn.Identity()
        self.projections = nn.ModuleList(
            nn.Identity() if channels == width else nn.Conv2d(width, channels, 1)
            for channels in widths
        )

    def forward(self, inputs):
        """Build the pyramid.

        Args:
            inputs (Sequence[Tensor]): The backbone's maps, finest first, each (N, C_i, H_i, W_i).

        Returns:
            tuple[Tensor]: ``num_outs`` maps, finest first, each (N, out_channels[i], H, W).

        Raises:
            ValueError: If there are more or fewer maps than ``in_channels``.
        """
        if len(inputs) != self.num_ins:
            raise ValueError(
                f'The neck was built for {self.num_ins} maps (in_channels {self.in_channels}), but '
                f'the backbone gives {len(inputs)}: make its out_indices and in_channels agree.'
            )
        finest_levels, *coarser_levels = super().forward(inputs)
        # Unlike the levels, the projections end with the last one that is wanted.
        return tuple(
            projection(level)
            for projection, level in zip(
                self.projections, (*finest_levels, *coarser_levels), strict=False
            )
        )

    def switch_to_deploy(self):
        """Fold the norm layers, if there are any, into the convolutions, for inference.

        Raises:
            ValueError: If they are of another kind than batch norm.
        """
        for module in self.modules():
            if isinstance(module, ConvModule) and module.with_norm:
                fold_norm(module.conv, module.norm)
                setattr(module, module.norm_name, nn.Identity())
                module.with_norm = False

    @staticmethod
    def _count_levels(
        in_channels, widths, num_outs, num_upsample_levels, start_level=0, end_level=-1, **_
    ):
        if isinstance(in_channels, int):
            raise ValueError(f'in_channels {in_channels} must list the channels of each map.')
        end = len(in_channels) if end_level == -1 else end_level + 1
        num_levels = len(in_channels[start_level:end])
        if num_levels < 2:
            raise ValueError(
                f'in_channels {in_channels}, from start_level to end_level, must list the channels '
                'of at least two backbone maps.'
            )
        if num_upsample_levels < 1:
            raise ValueError(
                f'num_upsample_levels is {num_upsample_levels}, but must be at least 1: mmdet has '
                'FPN for pyramids that do not grow downwards.'
            )
        if num_outs <= num_upsample_levels:
            raise ValueError(
                f'num_outs is {num_outs}, but {num_upsample_levels} finer levels and the finest of '
                f'the backbone make at least {num_upsample_levels + 1} outputs.'
            )
        if len(widths) != num_outs:
            raise ValueError(
                f'out_channels {list(widths)} must be one number, or one for each of the '
                f'{num_outs} outputs.'
            )
        return num_levels


class FinestLevels(ConvModule):
    """The 3x3 convolution of the finest backbone level, with the finer levels grown from its input.

    It stands where :class:`FPN` has the convolution of the finest lateral, which is the one place
    in FPN's forward pass that sees this lateral after the top-down sum.

    Args:
        channels (int): Channels of the laterals and of the outputs.
        num_upsample_levels (int): Number of finer levels.
        conv_cfg (dict, optional): Config of the 3x3 convolutions.
        norm_cfg (dict, optional): Config of the norm layers.
        act_cfg (dict, optional): Config of the activations.
    """

    def __init__(self, channels, num_upsample_levels, conv_cfg, norm_cfg, act_cfg):
        conv3x3 = dict(
            kernel_size=3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg
        )
        conv3x3['inplace'] = False
        upsample = dict(kernel_size=2, stride=2, conv_cfg=dict(type='deconv'), norm_cfg=norm_cfg)
        super().__init__(channels, channels, **conv3x3)
        self.upsamples = nn.ModuleList(
            ConvModule(channels, channels, **upsample, act_cfg=act_cfg, inplace=False)
            for _ in range(num_upsample_levels)
        )
        self.finer_convs = nn.ModuleList(
            ConvModule(channels, channels, **conv3x3) for _ in range(num_upsample_levels)
        )

    def forward(self, lateral):
        """Map a lateral (N, C, H, W) to a list of maps, from (N, C, 2^n H, 2^n W) to its own."""
        levels = [super().forward(lateral)]
        for upsample, conv in zip(self.upsamples, self.finer_convs, strict=True):
            lateral = upsample(lateral)
            levels.insert(0, conv(lateral))
        return levels
