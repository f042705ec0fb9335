"""Layers of EfficientViT. Sections are those of the paper."""

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmevit.utils.errors import UserError


class ConvNorm(nn.Module):
    """Convolution without bias and a norm layer. Folded: one convolution with bias.

    The kernel size is odd, and the padding keeps the size of the feature map. A ``norm_weight`` of
    zero makes a residual block start as the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_weight: float = 1.0,
        norm_cfg: dict = dict(type='BN'),
        deploy: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        conv_class = StridedDepthwiseConv2d if stride > 1 and groups > 1 else nn.Conv2d
        self.conv = conv_class(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=deploy
        )
        self.norm = nn.Identity() if deploy else build_norm_layer(norm_cfg, out_channels)[1]
        if (weight := getattr(self.norm, 'weight', None)) is not None:
            nn.init.constant_(weight, norm_weight)

    @property
    def is_folded(self) -> bool:
        """Whether the norm layer is part of the convolution."""
        return isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        return self.norm(self.conv(x))

    def switch_to_deploy(self) -> None:
        """Fold the norm layer into the convolution; see :func:`fold_norm`."""
        if not self.is_folded:
            fold_norm(self.conv, self.norm)
            self.norm = nn.Identity()


class StridedDepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that is trained in float32 on CPUs.

    Its gradient in bfloat16 took 208 ms where float32 took 5 ms (64 maps of 768 channels and 10x10
    pixels, one core with AMX, torch 2.11), half of a training step of M1 with mixed precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / stride, W / stride)."""
        is_mixed = input.dtype != self.weight.dtype
        if self.training and is_mixed and input.device.type == 'cpu':
            with autocast('cpu', enabled=False):
                return super().forward(input.to(self.weight.dtype))
        return super().forward(input)


def fold_norm(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.Module) -> None:
    """Fold a batch norm into the preceding convolution, in place.

    Raises:
        UserError: If the norm layer depends on its input in evaluation mode too (GN, LN, ...).
    """
    if not isinstance(norm, _BatchNorm):
        raise UserError(
            f'{type(norm).__name__} cannot be folded into a convolution. Use batch norm for '
            'switch_to_deploy() and deploy=True.'
        )
    values: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, *values, transpose=conv.transposed
    )


class ResidualDepthwise(ConvNorm):
    """``x + DropPath(norm(conv(x)))`` with a 3x3 depthwise convolution.

    In the folded form, the shortcut is added to the kernel (1 at its center).
    """

    def __init__(self, channels: int, drop_path_rate: float = 0.0, **kwargs: Any) -> None:
        super().__init__(channels, channels, kernel_size=3, groups=channels, **kwargs)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, channels, H, W)."""
        branch = super().forward(x)
        return branch if self.is_folded else x + self.drop_path(branch)

    def switch_to_deploy(self) -> None:
        """Fold the norm layer, then the shortcut, into the convolution."""
        if not self.is_folded:
            super().switch_to_deploy()
            with torch.no_grad():
                self.conv.weight[:, :, 1, 1] += 1


class Residual(nn.Module):
    """``x + DropPath(branch(x))``, with a branch that keeps the shape."""

    def __init__(self, branch: nn.Module, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        return x + self.drop_path(self.branch(x))


class FFN(nn.Sequential):  # runs the submodules in the order of assignment
    """Pointwise feed-forward network: 1x1, activation, 1x1 (Section 3.1)."""

    def __init__(
        self, channels: int, norm_cfg: dict, act_cfg: dict, ratio: int = 2, deploy: bool = False
    ) -> None:
        super().__init__()
        common: dict[str, Any] = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.expand = ConvNorm(channels, ratio * channels, **common)
        self.act = build_activation_layer(act_cfg)
        self.reduce = ConvNorm(ratio * channels, channels, norm_weight=0.0, **common)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation with a bottleneck of a quarter of the channels."""

    def __init__(self, channels: int, act_cfg: dict) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.act = build_activation_layer(act_cfg)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of ``x`` (N, C, H, W) by a gate from its mean."""
        gate = self.expand(self.act(self.reduce(x.mean((-2, -1), keepdim=True))))
        return x * gate.sigmoid()


def add_load_hook(module: nn.Module, hook: Callable[..., None]) -> None:
    """Call ``hook(module, state_dict, prefix, ...)`` before weights are loaded into a module."""
    if hasattr(module, 'register_load_state_dict_pre_hook'):  # private in older PyTorch
        module.register_load_state_dict_pre_hook(hook)
    else:
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def check_bfloat16_size(height: int, width: int) -> None:
    """Refuse images below 32 pixels in bfloat16 on a CPU.

    PyTorch's convolutions give NaN for them on CPUs with AMX.
    """
    # While tracing, sizes are tensors.
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return
    if height < 32 or width < 32:
        raise UserError(
            f'Images of {height}x{width} pixels are too small for bfloat16 on a CPU. Use float32, '
            'or images of 32x32 pixels and up.'
        )
