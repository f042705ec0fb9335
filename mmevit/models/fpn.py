"""The detection neck: mmdet's FPN, continued to finer levels than the backbone has."""

from mmcv.cnn import ConvModule
from mmdet.models.necks import FPN
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class EfficientViTFPN(FPN):
    """Feature pyramid that grows downwards too, since the backbone starts at stride 16.

    From the finest lateral, after the top-down sum, chained transposed convolutions make finer
    laterals, and each of them is followed by its own 3x3 convolution. All else is mmdet's FPN.

    Args:
        in_channels (list[int]): Channels of each backbone map, finest first; at least two maps.
        out_channels (int): Channels of every output.
        num_outs (int): Number of outputs: those made finer, those of the backbone's maps, and
            coarser ones if it is more than both.
        num_upsample_levels (int): Number of finer levels. 1 takes the pyramid to stride 8, as for
            RetinaNet; 2 takes it to stride 4, as for Mask R-CNN. Defaults to 1.
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

    def __init__(self, in_channels, out_channels, num_outs, num_upsample_levels=1, **kwargs):
        self._check_levels(in_channels, num_outs, num_upsample_levels, **kwargs)
        super().__init__(list(in_channels), out_channels, num_outs - num_upsample_levels, **kwargs)
        conv_cfgs = {name: kwargs.get(name) for name in ('conv_cfg', 'norm_cfg', 'act_cfg')}
        self.fpn_convs[0] = FinestLevels(out_channels, num_upsample_levels, **conv_cfgs)

    def forward(self, inputs):
        """Build the pyramid.

        Args:
            inputs (Sequence[Tensor]): The backbone's maps, finest first, each (N, C_i, H_i, W_i).

        Returns:
            tuple[Tensor]: ``num_outs`` maps, finest first, each (N, out_channels, H, W).

        Raises:
            ValueError: If there are more or fewer maps than ``in_channels``.
        """
        if len(inputs) != self.num_ins:
            raise ValueError(
                f'The neck was built for {self.num_ins} maps (in_channels {self.in_channels}), but '
                f'the backbone gives {len(inputs)}: make its out_indices and in_channels agree.'
            )
        finest_levels, *coarser_levels = super().forward(inputs)
        return (*finest_levels, *coarser_levels)

    @staticmethod
    def _check_levels(in_channels, num_outs, num_upsample_levels, start_level=0, end_level=-1, **_):
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
        if num_outs < num_levels + num_upsample_levels:
            raise ValueError(
                f'num_outs is {num_outs}, but {num_levels} backbone maps and {num_upsample_levels} '
                f'finer levels make {num_levels + num_upsample_levels} outputs.'
            )


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
