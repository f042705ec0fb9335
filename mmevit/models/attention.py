"""Cascaded group attention in windows (Section 3.1 of the EfficientViT paper)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from .layers import ConvNorm, add_load_hook


class WindowAttention(nn.Module):
    """Attention of a registered type in non-overlapping windows.

    A feature map that the window does not divide, or that is smaller than the window, is padded
    with zeros at the bottom and the right. Padding is not masked, as in the original.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        type: str = 'CascadedGroupAttention',
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.channels_first = False
        shape = dict(channels=channels, num_heads=num_heads, window_size=window_size)
        self.attention = MODELS.build(dict(type=type, **shape, **kwargs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` (N, C, H, W), of any height and width. The shape is unchanged."""
        if self.channels_first and is_one_window(x.shape, self.window_size):
            return self.attention(x)
        windows = self.attention(partition_windows(x, self.window_size, self.channels_first))
        return reverse_windows(windows, x.shape, self.window_size, self.channels_first)


@MODELS.register_module()
class CascadedGroupAttention(nn.Module):
    """Attention with cascaded heads on splits of the channels (Equations 2 to 4).

    The input of each head is its split of the channels plus the output of the previous head.

    Args:
        channels: Channels of the input and the output.
        num_heads: Number of heads, and of channel splits.
        window_size: Height and width of the input.
        kernel_sizes: Kernel size of the depthwise convolution on each head's queries. Values for
            more than ``num_heads`` heads are ignored.
        key_channels: Channels of each head's queries and keys. None for as many as its split has.
        value_ratio: Channels of each head's values, relative to its split.
        cascade: Whether a head sees the output of the previous head.
        deploy: Whether to build the folded form.

    Example:
        >>> import torch
        >>> attention = CascadedGroupAttention(64, 4, 7, kernel_sizes=(5, 5, 5, 5))
        >>> attention(torch.rand(6, 64, 7, 7)).shape
        torch.Size([6, 64, 7, 7])
    """

    # nn.ModuleList with a ConvNorm for each head, or with three nn.Conv2d after split_qkvs().
    qkvs: Any
    query_convs: Any  # nn.ModuleList of ConvNorm, one for each head
    attention_biases: nn.Parameter  # unless it is folded
    bias_index: Tensor  # unless it is folded
    expanded_biases: Tensor  # if it is folded

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        kernel_sizes: Sequence[int],
        key_channels: int | None = 16,
        value_ratio: float = 1.0,
        cascade: bool = True,
        norm_cfg: dict = dict(type='BN'),
        act_cfg: dict = dict(type='ReLU'),
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        split_channels = channels // num_heads
        key_channels = split_channels if key_channels is None else key_channels
        self.key_channels = key_channels
        self.value_channels = round(value_ratio * split_channels)
        self.value_padding = split_channels - self.value_channels
        self.scale = key_channels**-0.5
        self.cascade = cascade
        self.deploy = deploy
        self.channels_first = False

        common: dict[str, Any] = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.qkvs = nn.ModuleList(
            ConvNorm(split_channels, 2 * key_channels + self.value_channels, **common)
            for _ in range(num_heads)
        )
        self.query_convs = nn.ModuleList(
            ConvNorm(key_channels, key_channels, kernel_size, groups=key_channels, **common)
            for kernel_size in kernel_sizes[:num_heads]
        )
        self.act = build_activation_layer(act_cfg)
        self.proj = ConvNorm(num_heads * self.value_channels, channels, norm_weight=0.0, **common)

        area = window_size**2
        if deploy:
            self.register_buffer('expanded_biases', torch.zeros(num_heads, area, area))
        else:
            self.attention_biases = nn.Parameter(torch.zeros(num_heads, area))
            index = relative_position_index(window_size)
            self.register_buffer('bias_index', index, persistent=False)
            add_load_hook(self, resize_loaded_biases)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to windows (N, C, window_size, window_size). The shape is unchanged."""
        # The table is expanded in every call: a cached expansion would be stale after
        # load_state_dict() or when EMAHook swaps the weights.
        biases = self.expanded_biases if self.deploy else self.attention_biases[:, self.bias_index]
        outputs = []
        for head, split in enumerate(x.chunk(self.num_heads, dim=1)):
            if head > 0 and self.cascade:
                split = add_output(split, outputs[-1], self.value_padding)
            outputs.append(self._attend(split, head, biases[head]))
        return self.proj(self.act(torch.cat(outputs, dim=1)))

    def _attend(self, x: Tensor, head: int, bias: Tensor) -> Tensor:
        """Map the input of a head to its output, both (N, channels, window_size, window_size)."""
        if self.channels_first:
            query, key, value = (conv(x) for conv in self.qkvs[head])
            query = self.query_convs[head](query).flatten(2)
            output = attend_channels_first(query, key.flatten(2), value.flatten(2), bias)
            return output.unflatten(2, x.shape[2:])
        qkv = self.qkvs[head](x)
        query = to_tokens(self.query_convs[head](qkv[:, : self.key_channels]))
        # Reordered before it is split: reordering the parts makes torch.export() guard on sizes.
        _, key, value = to_tokens(qkv).split(self._qkv_channels(), dim=2)
        output = attend(query if self.deploy else query * self.scale, key, value, bias)
        return output.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)

    def _qkv_channels(self) -> tuple[int, int, int]:
        return self.key_channels, self.key_channels, self.value_channels

    def switch_to_deploy(self) -> None:
        """Fold the scale into the queries' convolutions and expand the bias table once.

        :meth:`EfficientViT.switch_to_deploy` folds the other convolutions.
        """
        if self.deploy:
            return
        with torch.no_grad():
            for conv in self.query_convs:
                conv.switch_to_deploy()
                conv.conv.weight *= self.scale
                conv.conv.bias *= self.scale
        self.register_buffer('expanded_biases', self.attention_biases.detach()[:, self.bias_index])
        del self.attention_biases, self.bias_index
        self.deploy = True

    def split_qkvs(self) -> None:
        """Use separate convolutions for queries, keys and values. Only for the folded form."""
        channels = self._qkv_channels()
        for head, qkv in enumerate(self.qkvs):
            weights, biases = qkv.conv.weight.split(channels), qkv.conv.bias.split(channels)
            convs = nn.ModuleList(nn.Conv2d(qkv.conv.in_channels, count, 1) for count in channels)
            for conv, weight, bias in zip(convs, weights, biases, strict=True):
                conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.qkvs[head] = convs


def put_channels_first(module: nn.Module) -> None:
    """Store windows with channels first, for runtimes that store tensors so, as ONNX Runtime.

    Queries, keys and values then need not be copied to be split, and the depthwise convolution
    follows the queries' without a change of layout. Outputs stay the same. Pass this function to
    ``network.apply()``; it changes only folded :class:`CascadedGroupAttention`.
    """
    if not isinstance(module, WindowAttention):
        return
    attention = module.attention
    is_folded = isinstance(attention, CascadedGroupAttention) and attention.deploy
    if is_folded and not attention.channels_first:
        attention.split_qkvs()
        attention.channels_first = module.channels_first = True


def to_tokens(x: Tensor) -> Tensor:
    """Reorder maps (N, C, H, W) to (N, H * W, C): a view, if channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Apply softmax(query key^T + bias) to the values of windows of L positions.

    Queries (scaled), keys and values are (N, L, channels), as is the output, and the bias (L, L).
    """
    # PyTorch's fused kernels do not support values with other channels than the keys (on CPUs).
    weights = (torch.bmm(query, key.transpose(1, 2)) + bias).softmax(dim=-1)
    return torch.bmm(weights, value)


def attend_channels_first(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Do the same as :func:`attend`, with tensors (N, channels, L)."""
    weights = (torch.bmm(query.transpose(1, 2), key) + bias).softmax(dim=-1)
    return torch.bmm(value, weights.transpose(1, 2))


def add_output(split: Tensor, output: Tensor, padding: int) -> Tensor:
    """Add a head's output to the split of the next head (Equation 3).

    ``padding`` is the channels of the split minus those of the output. If it is negative, the
    output's last channels are ignored.
    """
    return split + (F.pad(output, (0, 0, 0, 0, 0, padding)) if padding else output)


def relative_position_index(window_size: int) -> Tensor:
    """Index each (query, key) pair of a window into a head's row of the bias table.

    Returns:
        int64, (window_size^2, window_size^2), ``|dy| * window_size + |dx|``.

    Example:
        >>> relative_position_index(2).tolist()
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """
    position = torch.arange(window_size)
    distance = (position[:, None] - position).abs()
    index = distance[:, None, :, None] * window_size + distance[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def resize_loaded_biases(
    module: CascadedGroupAttention, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Resize (bicubic) a bias table of another window size before it is loaded.

    Tables are (num_heads, window_size^2), in order of ``|dy|``, then of ``|dx|``. Others are left
    as they are, so that PyTorch reports a size mismatch.
    """
    name, size = prefix + 'attention_biases', module.window_size
    table = state_dict.get(name)
    if module.deploy or table is None or table.ndim != 2:
        return
    num_heads, area = table.shape
    old_size = round(area**0.5)
    if old_size != size and old_size**2 == area:
        table = table.view(num_heads, 1, old_size, old_size)
        table = F.interpolate(table, (size, size), mode='bicubic', align_corners=False)
        state_dict[name] = table.view(num_heads, size**2)


# Windows are copied by clone() and view(): reshape() branches on the strides, which would tie a
# traced program to its sizes.


def partition_windows(x: Tensor, size: int, channels_first: bool = False) -> Tensor:
    """Cut a feature map into windows, padded with zeros at the bottom and the right.

    Channels last in memory suits PyTorch: what is copied is contiguous, and convolutions are
    faster.

    Returns:
        (N * rows * columns, C, size, size), the windows of a feature map in row-major order.
    """
    batch, channels, height, width = x.shape
    rows, columns = count_windows(height, width, size)
    x = pad_or_crop(x, rows * size - height, columns * size - width, skip_zero=channels_first)
    if channels_first:
        x = x.view(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        return x.clone(memory_format=torch.contiguous_format).view(-1, channels, size, size)
    x = x.permute(0, 2, 3, 1).view(batch, rows, size, columns, size, channels).transpose(2, 3)
    x = x.clone(memory_format=torch.contiguous_format)
    windows = x.view(-1, size, size, channels).permute(0, 3, 1, 2)
    if isinstance(batch * rows * columns, torch.SymInt):
        # Without this copy, torch.export() assumes more than one window, since the memory format
        # of the result depends on it.
        return windows.clone(memory_format=torch.contiguous_format)
    return windows


def reverse_windows(
    windows: Tensor, shape: Sequence[int], size: int, channels_first: bool = False
) -> Tensor:
    """Undo :func:`partition_windows` of a feature map of this shape, and remove the padding."""
    batch, channels, height, width = shape
    rows, columns = count_windows(height, width, size)
    if channels_first:
        x = windows.view(batch, rows, columns, channels, size, size).permute(0, 3, 1, 4, 2, 5)
        x = x.clone(memory_format=torch.contiguous_format)
        x = x.view(batch, channels, rows * size, columns * size)
        return pad_or_crop(x, height - rows * size, width - columns * size, skip_zero=True)
    x = windows.permute(0, 2, 3, 1).view(batch, rows, columns, size, size, channels)
    x = x.transpose(2, 3).clone(memory_format=torch.contiguous_format)
    x = x.view(batch, rows * size, columns * size, channels).permute(0, 3, 1, 2)
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        # Slicing makes torch.export() guard on the sizes.
        return pad_or_crop(x, height - rows * size, width - columns * size, skip_zero=False)
    return x[:, :, :height, :width]


def count_windows(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the number of rows and of columns of windows that cover a feature map."""
    return (height + size - 1) // size, (width + size - 1) // size


# torch.export() passes dynamic sizes as torch.SymInt, torch.jit.trace() passes all sizes as
# tensors. A branch on the value of either ties the program to that value, so that the functions
# above and below look at the type first.


def is_one_window(shape: Sequence[int], size: int) -> bool:
    """Whether a feature map of shape (N, C, H, W) is known to be exactly one window."""
    height, width = shape[2:]
    return isinstance(height, int) and isinstance(width, int) and height == width == size


def pad_or_crop(x: Tensor, bottom: int, right: int, skip_zero: bool) -> Tensor:
    """Pad with zeros, or crop where negative.

    ``skip_zero`` avoids the copy of a zero-width pad at static sizes. torch.compile() shows dynamic
    sizes as plain numbers, so that it would tie the program to the traced size with ``skip_zero``.
    """
    if skip_zero and isinstance(bottom * right, int) and bottom == right == 0:
        return x
    return F.pad(x, (0, right, 0, bottom))
