"""Parts of Swin Transformer in place of ours, for the ablation study (Table 6)."""

from collections.abc import Sequence

from mmcv.cnn.bricks import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.registry import MODELS
from mmpretrain.models.utils import WindowMSA
from torch import Tensor, nn

from .attention import WindowAttention


@MODELS.register_module()
class SwinLayoutBlock(nn.Module):
    """Swin's layout instead of the sandwich: one attention, then one FFN four times as wide.

    Its windows are not shifted. It has Swin's norm layers and activations: what every block gets
    in ``kernel_sizes``, ``norm_cfg``, ``act_cfg`` and ``deploy`` is ignored.

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
        self.attention = WindowAttention(
            channels, num_heads, window_size, type='PlainWindowAttention'
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FFN(
            channels,
            4 * channels,
            act_cfg=dict(type='GELU'),
            dropout_layer=dict(type='DropPath', drop_prob=drop_path_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (N, channels, H, W) to the same shape."""
        tokens = self.norm1(x.permute(0, 2, 3, 1))
        x = x + self.drop_path(self.attention(tokens.permute(0, 3, 1, 2)))
        x = x.permute(0, 2, 3, 1)
        return self.ffn(self.norm2(x), identity=x).permute(0, 3, 1, 2)


@MODELS.register_module()
class PlainWindowAttention(nn.Module):
    """Swin's attention inside a window: every head sees all channels, and no other head.

    What every attention gets in ``kernel_sizes``, ``norm_cfg``, ``act_cfg`` and ``deploy`` is
    ignored.

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
        """Map windows ``x`` (N, channels, window_size, window_size) to the same shape."""
        output = self.attention(x.flatten(2).transpose(1, 2))
        return output.transpose(1, 2).unflatten(2, x.shape[2:])
