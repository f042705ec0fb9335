"""Cascaded group attention (Section 3.1, Equations 2 to 4) and the windows that it works in."""

import torch
import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.registry import MODELS
from torch import nn

from .layers import ConvNorm


class WindowAttention(nn.Module):
    """Cascaded group attention inside windows that do not overlap.

    A map that the window does not divide, or that is smaller than the window, is padded with zeros
    at the bottom and the right. There is no mask, since the released weights were trained without.

    Args:
        channels (int): Channels of the input and the output.
        num_heads (int): Number of heads.
        window_size (int): Height and width of a window.
        type (str): Attention inside a window. Defaults to ``'CascadedGroupAttention'``.
        **kwargs: Its other arguments.

    Example:
        >>> import torch
        >>> attention = WindowAttention(64, 4, 7, kernel_sizes=(5, 5, 5, 5))
        >>> attention(torch.rand(2, 64, 9, 30)).shape
        torch.Size([2, 64, 9, 30])
    """

    def __init__(self, channels, num_heads, window_size, type='CascadedGroupAttention', **kwargs):
        super().__init__()
        self.window_size = window_size
        attention = dict(type=type, channels=channels, num_heads=num_heads, **kwargs)
        self.attention = MODELS.build(dict(attention, window_size=window_size))

    def forward(self, x):
        """Map ``x`` (N, C, H, W), of any height and width, to the same shape."""
        batch, channels, height, width = x.shape
        size = self.window_size
        # Where the windows divide the map, the padding is zero wide. It is not skipped then,
        # since a branch on the size would tie a traced or exported model to it.
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        x = F.pad(x, (0, columns * size - width, 0, rows * size - height))

        # Channels go last: what is copied is then contiguous, and the layout suits convolutions.
        # reshape() would ask for the strides, which ties an exported model to its size as well.
        windows = x.permute(0, 2, 3, 1).view(batch, rows, size, columns, size, channels)
        windows = windows.transpose(2, 3).clone(memory_format=torch.contiguous_format)
        windows = windows.view(-1, size, size, channels).permute(0, 3, 1, 2)
        if isinstance(batch * rows * columns, torch.SymInt):
            # To tell which layout this is, torch.export() would count on more than one window.
            windows = windows.clone(memory_format=torch.contiguous_format)

        windows = self.attention(windows).permute(0, 2, 3, 1)
        x = windows.view(batch, rows, columns, size, size, channels).transpose(2, 3)
        x = x.clone(memory_format=torch.contiguous_format)
        x = x.view(batch, rows * size, columns * size, channels).permute(0, 3, 1, 2)
        if isinstance(height, torch.SymInt):
            # A slice would have torch.export() ask how the sizes compare.
            return F.pad(x, (0, width - columns * size, 0, height - rows * size))
        return x[:, :, :height, :width]


@MODELS.register_module()
class CascadedGroupAttention(nn.Module):
    """Attention whose heads each see one split of the channels plus the head before's output.

    Args:
        channels (int): Channels of the input and the output.
        num_heads (int): Number of heads, and of channel splits.
        window_size (int): Height and width of the input.
        kernel_sizes (Sequence[int]): Kernel size of the depthwise convolution on each head's
            queries; what is left over is ignored.
        key_channels (int, optional): Channels of each head's queries and keys; None for as many
            as its split has. Defaults to 16.
        value_ratio (float): Channels of each head's values, relative to its split. Defaults to 1.
        cascade (bool): Whether a head sees the output of the head before. Defaults to True.
        norm_cfg (dict): Config of the normalisation. Defaults to ``dict(type='BN')``.
        act_cfg (dict): Config of the activation. Defaults to ``dict(type='ReLU')``.
        deploy (bool): Whether to build the folded form. Defaults to False.

    Example:
        >>> import torch
        >>> attention = CascadedGroupAttention(64, 4, 7, kernel_sizes=(5, 5, 5, 5))
        >>> attention(torch.rand(6, 64, 7, 7)).shape
        torch.Size([6, 64, 7, 7])
    """

    def __init__(
        self,
        channels,
        num_heads,
        window_size,
        kernel_sizes,
        key_channels=16,
        value_ratio=1.0,
        cascade=True,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
        deploy=False,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        split_channels = channels // num_heads
        self.key_channels = key_channels or split_channels
        self.value_channels = round(value_ratio * split_channels)
        self.surplus = split_channels - self.value_channels
        self.scale = self.key_channels**-0.5
        self.cascade = cascade
        self.deploy = deploy

        common = dict(norm_cfg=norm_cfg, deploy=deploy)
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
            self.register_buffer('bias_index', relative_index(window_size), persistent=False)

    def forward(self, x):
        """Map windows ``x`` (N, C, window_size, window_size) to the same shape."""
        # The table is expanded at every call, in evaluation too: an expansion kept from an earlier
        # call would be stale after load_state_dict() or a swap for averaged weights.
        biases = self.expanded_biases if self.deploy else self.attention_biases[:, self.bias_index]
        outputs = []
        for head, split in enumerate(x.chunk(self.num_heads, dim=1)):
            if head > 0 and self.cascade:
                split = add_output(split, outputs[-1], self.surplus)
            outputs.append(self._attend(split, head, biases[head]))
        return self.proj(self.act(torch.cat(outputs, dim=1)))

    def _attend(self, x, head, bias):
        qkv = self.qkvs[head](x)
        query = self.query_convs[head](qkv[:, : self.key_channels]).flatten(2)
        key, value = qkv.flatten(2)[:, self.key_channels :].split(
            (self.key_channels, self.value_channels), dim=1
        )
        if not self.deploy:
            query = query * self.scale
        attention = torch.bmm(query.transpose(1, 2), key) + bias
        attention = attention.softmax(dim=-1)
        output = torch.bmm(attention, value.transpose(1, 2)).transpose(1, 2)
        return output.unflatten(2, x.shape[2:])

    def switch_to_deploy(self):
        """Fold the scale into the queries' convolutions and expand the bias table once."""
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

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Resize a bias table that was made for another window on its way in."""
        name = prefix + 'attention_biases'
        if not self.deploy and name in state_dict and state_dict[name].ndim == 2:
            state_dict[name] = resize_bias_table(state_dict[name], self.window_size)
        super()._load_from_state_dict(state_dict, prefix, *args)


def add_output(split, output, surplus):
    """Add a head's output to the split of the head after it (Equation 3).

    Args:
        split (Tensor): (N, C, H, W).
        output (Tensor): (N, C - surplus, H, W); where one is narrower, its first channels count.
        surplus (int): Channels that the split has more, or fewer if negative.

    Returns:
        Tensor: (N, C, H, W).
    """
    return split + (F.pad(output, (0, 0, 0, 0, 0, surplus)) if surplus else output)


def relative_index(window_size):
    """Index of each (query, key) pair of a window into a head's row of the bias table.

    Args:
        window_size (int): Height and width of the window.

    Returns:
        Tensor: int64, (window_size^2, window_size^2), ``|dy| * window_size + |dx|``.

    Example:
        >>> relative_index(2).tolist()
        [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    """
    position = torch.arange(window_size**2)
    row, column = position // window_size, position % window_size
    row_offset = (row[:, None] - row[None, :]).abs()
    column_offset = (column[:, None] - column[None, :]).abs()
    return row_offset * window_size + column_offset


def resize_bias_table(table, window_size):
    """Resize a bias table bicubically to another window.

    Args:
        table (Tensor): (num_heads, old_size^2), rows in order of ``|dy|``, then of ``|dx|``.
        window_size (int): The new height and width of the window.

    Returns:
        Tensor: (num_heads, window_size^2); ``table`` itself if it fits already or is no square.

    Example:
        >>> import torch
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
