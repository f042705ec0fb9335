"""Swin Transformer's parts for the ablations (Table 6 of the EfficientViT paper)."""

from collections.abc import Sequence

from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.registry import MODELS
from mmpretrain.models.utils import WindowMSA
from torch import Tensor, nn

from .attention import WindowAttention


@MODELS.register_module()
class SwinLayoutBlock(nn.Module):
    """Swin's layout instead of the sandwich: one attention, then one FFN.

    The FFN has four times as many hidden channels. The windows are not shifted. The norm layers and
    activations are Swin's: ``kernel_sizes``, ``norm_cfg``, ``act_cfg`` and ``deploy`` are accepted
    for compatibility and ignored.

    Example:
        >>> import torch
        >>> SwinLayoutBlock(64, 4, 7, 0.0)(torch.rand(1, 64, 14, 9)).shape
        torch.Size([1, 64, 14, 9])
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        drop_path_rate: float,
        kernel_sizes: Sequence[int] | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, num_heads, window_size, 'PlainWindowAttention')
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FFN(
            channels,
            4 * channels,
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` (N, channels, H, W). The shape is unchanged."""
        tokens = self.norm1(x.permute(0, 2, 3, 1))
        x = x + self.drop_path(self.attention(tokens.permute(0, 3, 1, 2)))
        x = x.permute(0, 2, 3, 1)
        return self.ffn(self.norm2(x), identity=x).permute(0, 3, 1, 2)


@MODELS.register_module()
class PlainWindowAttention(nn.Module):
    """Swin's attention inside a window, without channel splits or cascade.

    As in :class:`SwinLayoutBlock`, the arguments after ``window_size`` are ignored.

    Example:
        >>> import torch
        >>> PlainWindowAttention(64, 4, 7)(torch.rand(6, 64, 7, 7)).shape
        torch.Size([6, 64, 7, 7])
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        kernel_sizes: Sequence[int] | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.attention = WindowMSA(channels, (window_size, window_size), num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to windows (N, channels, window_size, window_size). The shape is unchanged."""
        output = self.attention(x.flatten(2).transpose(1, 2))
        return output.transpose(1, 2).unflatten(2, x.shape[2:])
