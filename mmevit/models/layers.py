"""The layers that the whole network is made of, each of which knows its own folded form."""

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmevit.utils.errors import UserError


class ConvNorm(nn.Module):
    """A convolution without bias and its normalisation; once folded, one convolution with bias.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Odd size of the kernel; the padding keeps the size of the map.
            Defaults to 1.
        stride (int): Stride of the convolution. Defaults to 1.
        groups (int): Groups of the convolution. Defaults to 1.
        norm_weight (float): Value that the weight of the normalisation starts at. Zero makes a
            residual branch start as the identity. Defaults to 1.
        norm_cfg (dict): Config of the normalisation. Defaults to ``dict(type='BN')``.
        deploy (bool): Whether to build the folded form. Defaults to False.

    Example:
        >>> import torch
        >>> ConvNorm(3, 8, 3, stride=2)(torch.rand(1, 3, 33, 47)).shape
        torch.Size([1, 8, 17, 24])
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size=1,
        stride=1,
        groups=1,
        norm_weight=1.0,
        norm_cfg=dict(type='BN'),
        deploy=False,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=deploy,
        )
        self.norm = nn.Identity() if deploy else build_norm_layer(norm_cfg, out_channels)[1]
        if getattr(self.norm, 'weight', None) is not None:
            nn.init.constant_(self.norm.weight, norm_weight)

    def forward(self, x):
        """Map ``x`` (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.norm(self.conv(x))

    def switch_to_deploy(self):
        """Fold the normalisation into the convolution, as it stands in evaluation.

        Raises:
            UserError: If the normalisation depends on its input even in evaluation (GN, LN, ...)
                and so is no fixed scale and shift.
        """
        if not isinstance(self.norm, nn.Identity):
            fold_norm(self.conv, self.norm)
            self.norm = nn.Identity()


def fold_norm(conv, norm):
    """Fold a batch normalisation, as it stands in evaluation, into the convolution before it.

    Args:
        conv (nn.Conv2d | nn.ConvTranspose2d): The convolution, which is changed.
        norm (nn.Module): The normalisation.

    Raises:
        UserError: If the normalisation depends on its input even in evaluation (GN, LN, ...) and
            so is no fixed scale and shift.
    """
    if not isinstance(norm, _BatchNorm):
        raise UserError(
            f'{type(norm).__name__} cannot be folded into a convolution: '
            'switch_to_deploy() and deploy=True need batch normalisation.'
        )
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=conv.transposed,
    )


class ResidualDepthwise(ConvNorm):
    """``x + DropPath(norm(conv(x)))`` with a 3x3 depthwise convolution.

    Once folded, the identity is the centre of the kernel.

    Args:
        channels (int): Channels of the input and the output.
        drop_path_rate (float): Probability that the branch is dropped for a sample in training.
            Defaults to 0.
        **kwargs: ``norm_weight``, ``norm_cfg`` and ``deploy`` of :class:`ConvNorm`.

    Example:
        >>> import torch
        >>> ResidualDepthwise(8)(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, channels, drop_path_rate=0.0, **kwargs):
        super().__init__(channels, channels, kernel_size=3, groups=channels, **kwargs)
        self.drop_path = DropPath(drop_path_rate)
        self.is_folded = isinstance(self.norm, nn.Identity)

    def forward(self, x):
        """Map ``x`` (N, channels, H, W) to the same shape."""
        branch = super().forward(x)
        return branch if self.is_folded else x + self.drop_path(branch)

    def switch_to_deploy(self):
        """Fold the normalisation, then the identity, into the convolution."""
        super().switch_to_deploy()
        if not self.is_folded:
            with torch.no_grad():
                self.conv.weight[:, :, 1, 1] += 1
            self.is_folded = True


class Residual(nn.Module):
    """``x + DropPath(branch(x))``.

    Args:
        branch (nn.Module): A module that keeps the shape of its input.
        drop_path_rate (float): Probability that the branch is dropped for a sample in training.
            Defaults to 0.
    """

    def __init__(self, branch, drop_path_rate=0.0):
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x):
        """Map ``x`` (N, C, H, W) to the same shape."""
        return x + self.drop_path(self.branch(x))


class FFN(nn.Sequential):
    """Pointwise feed-forward network: 1x1, activation, 1x1 (Section 3.1).

    Args:
        channels (int): Channels of the input and the output.
        norm_cfg (dict): Config of the normalisation.
        act_cfg (dict): Config of the activation.
        ratio (int): How many times as wide it is inside. Defaults to 2.
        deploy (bool): Whether to build the folded form. Defaults to False.

    Example:
        >>> import torch
        >>> ffn = FFN(8, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
        >>> ffn(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, channels, norm_cfg, act_cfg, ratio=2, deploy=False):
        super().__init__()
        common = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.expand = ConvNorm(channels, ratio * channels, **common)
        self.act = build_activation_layer(act_cfg)
        self.reduce = ConvNorm(ratio * channels, channels, norm_weight=0.0, **common)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation with a bottleneck of a quarter of the channels.

    Args:
        channels (int): Channels of the input and the output.
        act_cfg (dict): Config of the activation inside the bottleneck.

    Example:
        >>> import torch
        >>> SqueezeExcite(8, act_cfg=dict(type='ReLU'))(torch.rand(1, 8, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(self, channels, act_cfg):
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.act = build_activation_layer(act_cfg)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        """Scale each channel of ``x`` (N, C, H, W) by a gate from its mean over the map."""
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()
