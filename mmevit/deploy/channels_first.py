"""The attention as runtimes like it that keep channels first, such as ONNX Runtime."""

import torch
import torch.nn.functional as F
from torch import nn

from mmevit.models.attention import CascadedGroupAttention, WindowAttention, add_output


def put_channels_first(network):
    """Replace the attention of a folded network by what computes the same with channels first.

    Args:
        network (nn.Module): The network, which is changed. What is not folded stays as it is.

    Returns:
        nn.Module: The network.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, WindowAttention) and is_folded(child.attention):
                setattr(parent, name, ChannelsFirstWindows(child))
    return network


def is_folded(attention):
    """Tell whether an attention is ours, in its folded form."""
    return isinstance(attention, CascadedGroupAttention) and attention.deploy


class ChannelsFirstWindows(nn.Module):
    """:class:`WindowAttention`, whose windows are copied channel by channel.

    Args:
        windows (WindowAttention): The folded form.
    """

    def __init__(self, windows):
        super().__init__()
        self.size = windows.window_size
        self.attention = ChannelsFirstAttention(windows.attention)

    def forward(self, x):
        """Map ``x`` (N, C, H, W), of any height and width, to the same shape."""
        batch, channels, height, width = x.shape
        size = self.size
        if isinstance(height, int) and height == width == size:
            return self.attention(x)
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        bottom, right = rows * size - height, columns * size - width
        x = pad(x, bottom, right)
        windows = x.view(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        windows = windows.clone(memory_format=torch.contiguous_format)
        windows = self.attention(windows.view(-1, channels, size, size))
        x = windows.view(batch, rows, columns, channels, size, size).permute(0, 3, 1, 4, 2, 5)
        x = x.clone(memory_format=torch.contiguous_format)
        x = x.view(batch, channels, rows * size, columns * size)
        return pad(x, -bottom, -right)


class ChannelsFirstAttention(nn.Module):
    """:class:`CascadedGroupAttention`, whose queries, keys and values have a convolution each.

    The depthwise convolution then follows the queries' at once, without a change of layout between
    them, and nothing is copied to be split.

    Args:
        attention (CascadedGroupAttention): The folded form.
    """

    def __init__(self, attention):
        super().__init__()
        self.cascade, self.surplus = attention.cascade, attention.surplus
        widths = (attention.key_channels, attention.key_channels, attention.value_channels)
        queries, keys, values = zip(
            *(split_outputs(head.conv, widths) for head in attention.qkvs), strict=True
        )
        self.queries = nn.ModuleList(
            nn.Sequential(pointwise, depthwise.conv)
            for pointwise, depthwise in zip(queries, attention.query_convs, strict=True)
        )
        self.keys, self.values = nn.ModuleList(keys), nn.ModuleList(values)
        self.register_buffer('biases', attention.expanded_biases)
        self.act, self.proj = attention.act, attention.proj

    def forward(self, x):
        """Map windows ``x`` (N, C, window_size, window_size) to the same shape."""
        outputs = []
        for head, split in enumerate(x.chunk(len(self.queries), dim=1)):
            if head > 0 and self.cascade:
                split = add_output(split, outputs[-1], self.surplus)
            query, key, value = (
                convs[head](split).flatten(2) for convs in (self.queries, self.keys, self.values)
            )
            attention = torch.bmm(query.transpose(1, 2), key) + self.biases[head]
            output = torch.bmm(value, attention.softmax(dim=-1).transpose(1, 2))
            outputs.append(output.unflatten(2, x.shape[2:]))
        return self.proj(self.act(torch.cat(outputs, dim=1)))


def pad(x, bottom, right):
    """Pad with zeros, or crop where negative. A file for one size holds no copy for nothing."""
    if isinstance(bottom * right, int) and bottom == right == 0:
        return x
    return F.pad(x, (0, right, 0, bottom))


def split_outputs(conv, widths):
    """Split a 1x1 convolution into several, by the numbers of their outputs."""
    parts = []
    for weight, bias in zip(conv.weight.split(widths), conv.bias.split(widths), strict=True):
        parts.append(nn.Conv2d(weight.shape[1], weight.shape[0], 1))
        parts[-1].weight, parts[-1].bias = nn.Parameter(weight), nn.Parameter(bias)
    return parts
