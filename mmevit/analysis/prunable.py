"""The parts of networks whose channels can be told apart and taken out."""

import torch
from mmcv.cnn.bricks.transformer import FFN as TokenFFN
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmevit.models.attention import CascadedGroupAttention
from mmevit.models.layers import FFN


def find_parts(network):
    """Find the attention and the FFNs of a network, as far as they are known.

    Args:
        network (nn.Module): A network of ours, mmpretrain's or timm's.

    Returns:
        dict[str, Part]: The parts, by the names of their modules.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> len(find_parts(EfficientViT('m0')))
        22
    """
    found = ((name, make_part(module)) for name, module in network.named_modules())
    return {name: part for name, part in found if part}


def make_part(module):
    """Make the part that a module is, or None."""
    if isinstance(module, FFN) and knows_channels(module.expand.norm):
        return FeedForward(module.expand.conv, module.expand.norm, module.reduce.conv)
    if isinstance(module, TokenFFN) and module.num_fcs == 2:
        return FeedForward(module.layers[0][0], None, module.layers[1])
    kind = f'{type(module).__module__}.{type(module).__name__}'
    if kind == 'timm.layers.mlp.Mlp' and isinstance(module.norm, nn.Identity):
        return FeedForward(module.fc1, None, module.fc2)
    is_cascaded = isinstance(module, CascadedGroupAttention) and not module.deploy
    if is_cascaded and knows_channels(module.qkvs[0].norm):
        return CascadedHeads(module)
    if kind in PLAIN and is_plain(module):
        return PlainHeads(module)
    return None


def knows_channels(norm):
    """Tell whether a norm layer treats each channel by itself, with a weight, or is none."""
    return isinstance(norm, nn.Identity) or (isinstance(norm, _BatchNorm) and norm.affine)


class Part:
    """A module with channels inside that nothing else sees.

    Attributes:
        prunable (tuple[str]): Kinds of channels that can be taken out; keys go with their queries.
    """

    prunable = ()

    def changes(self):
        """Give what the loss changes by without each channel, to first order.

        Returns:
            dict[str, Tensor]: For each kind of channels (num_heads, channels of a head).
        """
        raise NotImplementedError

    def keep(self, kept, network, name):
        """Take out all channels but some.

        Args:
            kept (dict[str, Tensor]): Channels to keep of each kind, (num_heads, channels).
            network (nn.Module): The network, which is changed.
            name (str): Name of the part's module in it.
        """
        raise NotImplementedError


class FeedForward(Part):
    """Two linear layers or 1x1 convolutions, and what is between them.

    Args:
        first (nn.Linear | nn.Conv2d): Makes the channels.
        norm (nn.Module, optional): Their normalisation.
        second (nn.Linear | nn.Conv2d): Uses them.
    """

    prunable = ('ffn',)

    def __init__(self, first, norm, second):
        self.first, self.norm, self.second = first, norm, second

    def changes(self):
        """Give what the loss changes by, to first order: see :meth:`Part.changes`."""
        change = times_gradient(self.second.weight)
        return dict(ffn=change.reshape(*change.shape[:2], -1).sum((0, 2))[None])

    def keep(self, kept, network, name):
        """Take out all channels but some: see :meth:`Part.keep`."""
        (index,) = kept['ffn']
        take(self.first, index)
        if self.norm is not None:
            take(self.norm, index)
        take(self.second, index, axis=1)


class CascadedHeads(Part):
    """Our attention, before it is folded.

    Args:
        attention (CascadedGroupAttention): The attention.
    """

    prunable = ('query',)

    def __init__(self, attention):
        self.attention = attention

    def changes(self):
        """Give what the loss changes by, to first order: see :meth:`Part.changes`."""
        widths = (self.attention.key_channels,) * 2 + (self.attention.value_channels,)
        queries = torch.stack([change_of(conv.norm) for conv in self.attention.query_convs])
        qkv = torch.stack([change_of(conv.norm) for conv in self.attention.qkvs])
        _, keys, values = qkv.split(widths, dim=1)
        return dict(query=queries, key=keys, value=values)

    def keep(self, kept, network, name):
        """Take out all queries and keys but some: see :meth:`Part.keep`."""
        width = self.attention.key_channels
        values = torch.arange(self.attention.value_channels) + 2 * width
        heads = zip(self.attention.qkvs, self.attention.query_convs, kept['query'], strict=True)
        for qkv, query, index in heads:
            rows = torch.cat([index, index + width, values.to(index)])
            take(qkv.conv, rows)
            take(qkv.norm, rows)
            take(query.conv, index)
            take(query.norm, index)
            query.conv.groups = query.conv.in_channels = len(index)
        # The scale stays that of the width that the weights were trained with.
        self.attention.key_channels = kept['query'].shape[1]


class PlainHeads(Part):
    """Multi-head attention of mmpretrain's or timm's, in windows or not.

    Args:
        attention (nn.Module): The attention, see ``PLAIN``.
    """

    prunable = ('query', 'value')

    def __init__(self, attention):
        self.attention = attention

    def changes(self):
        """Give what the loss changes by, to first order: see :meth:`Part.changes`."""
        changes = change_of(self.attention.qkv).view(3, self.attention.num_heads, -1)
        return dict(zip(('query', 'key', 'value'), changes, strict=True))

    def keep(self, kept, network, name):
        """Put an attention with fewer channels in the place: see :meth:`Part.keep`."""
        parent, _, child = name.rpartition('.')
        slim = SlimAttention(self.attention, kept['query'], kept['value'])
        setattr(network.get_submodule(parent), child, slim)


class SlimAttention(nn.Module):
    """Multi-head attention whose queries and keys, or values, are narrower than its input.

    Args:
        attention (nn.Module): What it is made of, see ``PLAIN``; its layers are changed.
        queries (Tensor): Channels of each head's queries and keys to keep, (num_heads, D).
        values (Tensor): Channels of each head's values to keep, (num_heads, E).
    """

    def __init__(self, attention, queries, values):
        super().__init__()
        self.num_heads = attention.num_heads
        head_channels = attention.qkv.out_features // 3 // self.num_heads
        self.scale = getattr(attention, 'scale', head_channels**-0.5)
        self.widths = [self.num_heads * index.shape[1] for index in (queries, queries, values)]
        starts = (torch.arange(self.num_heads) * head_channels)[:, None].to(queries)
        queries, values = (queries + starts).flatten(), (values + starts).flatten()
        channels = head_channels * self.num_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        take(self.qkv, torch.cat([queries, queries + channels, values + 2 * channels]))
        take(self.proj, values, axis=1)
        self.gamma = getattr(attention, 'gamma1', nn.Identity())
        if hasattr(attention, 'relative_position_bias_table'):
            self.relative_position_bias_table = attention.relative_position_bias_table
            self.register_buffer(
                'relative_position_index', attention.relative_position_index.flatten()
            )

    def forward(self, x, mask=None, **unused):
        """Map tokens ``x`` (N, L, C) to the same shape; ``mask`` (num_windows, L, L) is added."""
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(self.widths, dim=2)
        )
        attention = self.scale * query @ key.transpose(2, 3)
        if hasattr(self, 'relative_position_bias_table'):
            bias = self.relative_position_bias_table[self.relative_position_index]
            attention = attention + bias.view(length, length, -1).permute(2, 0, 1)
        if mask is not None:
            windows = attention.view(-1, len(mask), *attention.shape[1:]) + mask[:, None]
            attention = windows.view_as(attention)
        output = attention.softmax(-1) @ value
        return self.gamma(self.proj(output.transpose(1, 2).flatten(2)))


# By their names, since neither library is needed for the others.
PLAIN = (
    'mmpretrain.models.utils.attention.WindowMSA',
    'mmpretrain.models.utils.attention.MultiheadAttention',
    'timm.layers.attention.Attention',
    'timm.models.swin_transformer.WindowAttention',
)


def is_plain(attention):
    """Tell whether an attention has nothing that :class:`SlimAttention` lacks."""
    own = [getattr(attention, name, None) for name in ('q_norm', 'k_norm', 'norm', 'gate')]
    return (
        isinstance(getattr(attention, 'qkv', None), nn.Linear)
        and attention.qkv.out_features == 3 * attention.proj.in_features
        and all(module is None or isinstance(module, nn.Identity) for module in own)
        and not getattr(attention, 'v_shortcut', False)
    )


def change_of(layer):
    """Sum gradient times weight, and that of the bias, for each output of a layer."""
    change = times_gradient(layer.weight).reshape(len(layer.weight), -1).sum(1)
    return change if layer.bias is None else change + times_gradient(layer.bias)


def times_gradient(parameter):
    """Multiply a parameter by its gradient, which is 0 where the loss does not need it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter * parameter.grad


def take(layer, index, axis=0):
    """Keep some outputs of a layer, or with ``axis=1`` some inputs.

    Args:
        layer (nn.Module): A convolution, linear or norm layer, which is changed.
        index (Tensor): What to keep.
        axis (int): 0 or 1. Defaults to 0.
    """
    names = ['weight'] if axis else ['weight', 'bias', 'running_mean', 'running_var']
    for name in names:
        value = getattr(layer, name, None)
        if value is not None:
            kept = value.detach().index_select(axis, index.to(value.device))
            is_parameter = isinstance(value, nn.Parameter)
            setattr(layer, name, nn.Parameter(kept) if is_parameter else kept)
    for name in SIZES[axis]:
        if hasattr(layer, name):
            setattr(layer, name, len(index))


# What layers call the number of their outputs and of their inputs.
SIZES = (('out_channels', 'out_features', 'num_features'), ('in_channels', 'in_features'))
