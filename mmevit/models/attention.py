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
    """Attention in non-overlapping windows.

    A feature map that the window does not divide, or that is smaller than the window, is padded
    with zeros at the bottom and the right. Padding is not masked, as in the original.

    Args:
        window_size: Height and width of a window.
        type: Registered name of the attention inside a window.
        **kwargs: Its other arguments.

    Example:
        >>> attention = WindowAttention(64, 4, 7, kernel_sizes=(5, 5, 5, 5))
        >>> attention(torch.rand(2, 64, 9, 30)).shape
        torch.Size([2, 64, 9, 30])
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
        attention = dict(type=type, channels=channels, num_heads=num_heads, **kwargs)
        self.attention = MODELS.build(dict(attention, window_size=window_size))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x`` (N, C, H, W), of any height and width. The shape is unchanged."""
        if self.channels_first and is_one_window(x.shape, self.window_size):
            return self.attention(x)
        windows = partition_windows(x, self.window_size, self.channels_first)
        windows = self.attention(windows)
        return reverse_windows(windows, x.shape, self.window_size, self.channels_first)

    def put_channels_first(self) -> None:
        """Store windows with their channels first, for runtimes other than PyTorch.

        An attention that is not a folded :class:`CascadedGroupAttention` stays as it is.
        """
        if isinstance(self.attention, CascadedGroupAttention) and self.attention.deploy:
            self.attention.put_channels_first()
            self.channels_first = True


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

    qkvs: Any  # nn.ModuleList of ConvNorm, one for each head
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
        self.key_channels = key_channels or split_channels
        self.value_channels = round(value_ratio * split_channels)
        self.num_missing_channels = split_channels - self.value_channels
        self.scale = self.key_channels**-0.5
        self.cascade = cascade
        self.deploy = deploy
        self.channels_first = False

        common: dict[str, Any] = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.qkvs = nn.ModuleList(
            ConvNorm(split_channels, 2 * self.key_channels + self.value_channels, **common)
            for _ in range(num_heads)
        )
        self.query_convs = nn.ModuleList(
            ConvNorm(
                self.key_channels,
                self.key_channels,
                kernel_size,
                groups=self.key_channels,
                **common,
            )
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
        """Apply to windows ``x`` (N, C, window_size, window_size).

        The shape is unchanged.
        """
        # The table is expanded in every call: a cached expansion would be stale after
        # load_state_dict() or when EMAHook swaps the weights.
        biases = self.expanded_biases if self.deploy else self.attention_biases[:, self.bias_index]
        outputs = []
        for head, split in enumerate(x.chunk(self.num_heads, dim=1)):
            if head > 0 and self.cascade:
                split = add_output(split, outputs[-1], self.num_missing_channels)
            query, key, value = self._project(split, head)
            output = attend(query, key, value, biases[head], self.channels_first)
            outputs.append(output.unflatten(2, x.shape[2:]))
        return self.proj(self.act(torch.cat(outputs, dim=1)))

    def _project(self, x: Tensor, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a head's queries, keys and values, each (N, channels, L)."""
        if self.channels_first:
            query, key, value = (conv(x) for conv in self.qkvs[head])
            return self.query_convs[head](query).flatten(2), key.flatten(2), value.flatten(2)
        qkv = self.qkvs[head](x)
        query = self.query_convs[head](qkv[:, : self.key_channels]).flatten(2)
        key, value = qkv.flatten(2)[:, self.key_channels :].split(
            (self.key_channels, self.value_channels), dim=1
        )
        return (query if self.deploy else query * self.scale), key, value

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

    def put_channels_first(self) -> None:
        """Use separate convolutions for queries, keys and values, channels first.

        No output then has to be copied to be split, and the depthwise convolution follows the
        queries' without a change of layout. Only for the folded form.
        """
        widths = (self.key_channels, self.key_channels, self.value_channels)
        for head, conv in enumerate(self.qkvs):
            self.qkvs[head] = split_conv(conv.conv, widths)
        self.channels_first = True


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, channels_first: bool = False
) -> Tensor:
    """Apply softmax(query^T key + bias) to the values of windows of L positions.

    Args:
        query: (N, key_channels, L), already scaled.
        key: (N, key_channels, L).
        value: (N, value_channels, L).
        bias: (L, L).
        channels_first: Memory layout of the values and the output.

    Returns:
        (N, value_channels, L).
    """
    weights = (torch.bmm(query.transpose(1, 2), key) + bias).softmax(dim=-1)
    if channels_first:
        return torch.bmm(value, weights.transpose(1, 2))
    return torch.bmm(weights, value.transpose(1, 2)).transpose(1, 2)


def add_output(split: Tensor, output: Tensor, padding: int) -> Tensor:
    """Add a head's output to the split of the next head (Equation 3).

    Args:
        split: (N, C, H, W).
        output: (N, C - padding, H, W). If it is wider than the split, its last channels are
            ignored.
        padding: Channels of the split minus channels of the output (may be negative).

    Returns:
        (N, C, H, W).
    """
    return split + (F.pad(output, (0, 0, 0, 0, 0, padding)) if padding else output)


def split_conv(conv: nn.Conv2d, widths: Sequence[int]) -> nn.ModuleList:
    """Split a 1x1 convolution into several by its output channels."""
    convs = nn.ModuleList()
    biases = conv.bias.split(widths)  # pyright: ignore[reportOptionalMemberAccess]
    for weight, bias in zip(conv.weight.split(widths), biases, strict=True):
        part = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        part.weight, part.bias = nn.Parameter(weight), nn.Parameter(bias)
        convs.append(part)
    return convs


def relative_position_index(window_size: int) -> Tensor:
    """Index each (query, key) pair of a window into a head's row of the bias table.

    Returns:
        int64, (window_size^2, window_size^2), ``|dy| * window_size + |dx|``.

    Example:
        >>> relative_position_index(2).tolist()
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """
    position = torch.arange(window_size**2)
    row, column = position // window_size, position % window_size
    row_offset = (row[:, None] - row[None, :]).abs()
    column_offset = (column[:, None] - column[None, :]).abs()
    return row_offset * window_size + column_offset


def resize_loaded_biases(
    module: CascadedGroupAttention, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Resize a bias table that is about to be loaded and was made for another window."""
    name = prefix + 'attention_biases'
    if not module.deploy and name in state_dict and state_dict[name].ndim == 2:
        state_dict[name] = resize_bias_table(state_dict[name], module.window_size)


def resize_bias_table(table: Tensor, window_size: int) -> Tensor:
    """Resize a bias table bicubically to another window.

    Args:
        table: (num_heads, old_size^2), in order of ``|dy|``, then of ``|dx|``.
        window_size: The new height and width of the window.

    Returns:
        (num_heads, window_size^2). ``table`` itself if it fits already or is not square.

    Example:
        >>> resize_bias_table(torch.zeros(4, 49), 12).shape
        torch.Size([4, 144])
    """
    num_heads, area = table.shape
    old_size = round(area**0.5)
    if old_size == window_size or old_size**2 != area:
        return table
    table = table.view(num_heads, 1, old_size, old_size)
    size = (window_size, window_size)
    table = F.interpolate(table, size=size, mode='bicubic', align_corners=False)
    return table.view(num_heads, window_size**2)


# Windows are copied by clone() and view(): reshape() branches on the strides, which would tie a
# traced program to its sizes.


def partition_windows(x: Tensor, size: int, channels_first: bool = False) -> Tensor:
    """Cut a feature map into windows, padded with zeros at the bottom and the right.

    Args:
        x: (N, C, H, W).
        size: Height and width of a window.
        channels_first: Memory layout of the windows. Channels last suits PyTorch: what is copied
            is contiguous, and convolutions are faster.

    Returns:
        (N * rows * columns, C, size, size), the windows of a feature map in row-major order.

    Example:
        >>> partition_windows(torch.rand(2, 8, 9, 30), 7).shape
        torch.Size([20, 8, 7, 7])
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
    return make_contiguous_if_dynamic(windows, batch * rows * columns)


def reverse_windows(
    windows: Tensor, shape: Sequence[int], size: int, channels_first: bool = False
) -> Tensor:
    """Undo :func:`partition_windows`, and remove the padding.

    Args:
        windows: (N * rows * columns, C, size, size).
        shape: (N, C, H, W).
        size: Height and width of a window.
        channels_first: Memory layout of the feature maps.

    Returns:
        (N, C, H, W).

    Example:
        >>> x = torch.rand(2, 8, 9, 30)
        >>> reverse_windows(partition_windows(x, 7), x.shape, 7).equal(x)
        True
    """
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
    return crop(x, height, width)


def count_windows(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the number of rows and of columns of windows that cover a feature map."""
    return (height + size - 1) // size, (width + size - 1) // size


# Everything that depends on how a program is traced is below. torch.export() passes dynamic sizes
# as torch.SymInt, torch.jit.trace() passes all sizes as tensors. A branch on the value of either
# ties the program to that value, so that these functions look at the type first.


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


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Crop at the bottom and the right, by a view where that is possible."""
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        # Slicing makes torch.export() guard on the sizes.
        return pad_or_crop(x, height - x.shape[2], width - x.shape[3], skip_zero=False)
    return x[:, :, :height, :width]


def make_contiguous_if_dynamic(windows: Tensor, num_windows: int) -> Tensor:
    """Make windows contiguous if torch.export() does not know their number.

    It would otherwise assume more than one window to infer the memory format from the strides.
    """
    if isinstance(num_windows, torch.SymInt):
        return windows.clone(memory_format=torch.contiguous_format)
    return windows
