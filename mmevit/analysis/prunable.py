"""Modules with channels that can be pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from mmcv.cnn.bricks.transformer import FFN as TokenFFN
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmevit.models.attention import CascadedGroupAttention
from mmevit.models.layers import FFN


def find_prunable(network: nn.Module) -> dict[str, Prunable]:
    """Find the supported attention and FFNs of a network by their names.

    Supported are ours, mmpretrain's and timm's.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> len(find_prunable(EfficientViT('m0')))
        22
    """
    found = ((name, make_prunable(module)) for name, module in network.named_modules())
    return {name: prunable for name, prunable in found if prunable}


def make_prunable(module: Any) -> Prunable | None:
    """Wrap a module if it is supported."""
    class_name = f'{type(module).__module__}.{type(module).__name__}'
    if class_name in ATTENTION_CLASSES and is_plain_attention(module):
        return PrunableAttention(module)
    if class_name == 'timm.layers.mlp.Mlp' and isinstance(module.norm, nn.Identity):
        return PrunableFFN(module.fc1, module.norm, module.fc2)
    if isinstance(module, TokenFFN) and module.num_fcs == 2:
        layers: Any = module.layers
        return PrunableFFN(layers[0][0], nn.Identity(), layers[1])
    if isinstance(module, FFN) and is_channelwise(module.expand.norm):
        return PrunableFFN(module.expand.conv, module.expand.norm, module.reduce.conv)
    if isinstance(module, CascadedGroupAttention) and not module.deploy:
        return PrunableCascadedAttention(module) if is_channelwise(module.qkvs[0].norm) else None
    return None


def is_channelwise(norm: nn.Module) -> bool:
    """Return whether a norm layer scales each channel independently or is the identity."""
    return isinstance(norm, nn.Identity) or (isinstance(norm, _BatchNorm) and norm.affine)


class Prunable(ABC):
    """A module with inner channels that no other module sees."""

    kinds: tuple[str, ...]  # that can be removed; keys are removed together with queries

    @abstractmethod
    def loss_changes(self) -> dict[str, Tensor]:
        """Compute the first-order change of the loss without each channel.

        Returns:
            For each kind of channels (num_heads, channels per head).
        """

    @abstractmethod
    def keep_channels(self, kept: dict[str, Tensor], network: nn.Module, name: str) -> None:
        """Remove all channels except ``kept``, (num_heads, channels) of each kind.

        The module is ``name`` in ``network``, where it can be replaced.
        """


class PrunableFFN(Prunable):
    """Two linear layers or 1x1 convolutions, with a norm layer or the identity after the first."""

    kinds = ('ffn',)

    def __init__(self, first: nn.Module, norm: nn.Module, second: Any) -> None:
        self.first, self.norm, self.second = first, norm, second

    def loss_changes(self) -> dict[str, Tensor]:
        """Compute the first-order change of the loss: see :meth:`Prunable.loss_changes`."""
        return dict(ffn=weight_times_gradient(self.second.weight).sum(0).view(1, -1))

    def keep_channels(self, kept: dict[str, Tensor], network: nn.Module, name: str) -> None:
        """Remove all channels except some: see :meth:`Prunable.keep_channels`."""
        (index,) = kept['ffn']
        keep_slices(self.first, index)
        keep_slices(self.norm, index)
        keep_slices(self.second, index, axis=1)


class PrunableCascadedAttention(Prunable):
    """Our attention, not folded. Only its queries and keys can be pruned."""

    kinds = ('query',)

    def __init__(self, attention: CascadedGroupAttention) -> None:
        self.attention = attention

    def loss_changes(self) -> dict[str, Tensor]:
        """Compute the first-order change of the loss: see :meth:`Prunable.loss_changes`."""
        widths = [self.attention.key_channels] * 2 + [self.attention.value_channels]
        queries = torch.stack([output_changes(conv.norm) for conv in self.attention.query_convs])
        qkv = torch.stack([output_changes(conv.norm) for conv in self.attention.qkvs])
        _, keys, values = qkv.split(widths, dim=1)
        return dict(query=queries, key=keys, value=values)

    def keep_channels(self, kept: dict[str, Tensor], network: nn.Module, name: str) -> None:
        """Remove all queries and keys except some: see :meth:`Prunable.keep_channels`."""
        attention, width = self.attention, self.attention.key_channels
        values = torch.arange(attention.value_channels) + 2 * width
        heads = zip(attention.qkvs, attention.query_convs, kept['query'], strict=True)
        for qkv, query, index in heads:
            rows = torch.cat([index, index + width, values.to(index)])
            keep_slices(qkv.conv, rows)
            keep_slices(qkv.norm, rows)
            keep_slices(query.conv, index)
            keep_slices(query.norm, index)
            query.conv.groups = query.conv.in_channels = len(index)
        # The scale stays that of the width that the weights were trained with.
        attention.key_channels = kept['query'].shape[1]


class PrunableAttention(Prunable):
    """Multi-head attention of mmpretrain or timm, see ``ATTENTION_CLASSES``."""

    kinds = ('query', 'value')

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def loss_changes(self) -> dict[str, Tensor]:
        """Compute the first-order change of the loss: see :meth:`Prunable.loss_changes`."""
        changes = output_changes(self.attention.qkv).view(3, self.attention.num_heads, -1)
        return dict(zip(('query', 'key', 'value'), changes, strict=True))

    def keep_channels(self, kept: dict[str, Tensor], network: nn.Module, name: str) -> None:
        """Replace by an attention with fewer channels: see :meth:`Prunable.keep_channels`."""
        parent, _, child = name.rpartition('.')
        pruned = PrunedAttention(self.attention, kept['query'], kept['value'])
        setattr(network.get_submodule(parent), child, pruned)


class PrunedAttention(nn.Module):
    """Multi-head attention whose queries and keys, or values, are narrower than its input.

    Args:
        attention: The original, see ``ATTENTION_CLASSES``; its layers are changed.
        queries: Channels of each head's queries and keys to keep, (num_heads, D).
        values: Channels of each head's values to keep, (num_heads, E).
    """

    relative_position_index: Tensor

    def __init__(self, attention: Any, queries: Tensor, values: Tensor) -> None:
        super().__init__()
        self.num_heads: int = attention.num_heads
        channels = attention.qkv.out_features // 3
        head_channels = channels // self.num_heads
        self.scale: float = getattr(attention, 'scale', head_channels**-0.5)
        self.widths = [self.num_heads * index.shape[1] for index in (queries, queries, values)]
        starts = (torch.arange(self.num_heads) * head_channels)[:, None].to(queries)
        queries, values = (queries + starts).flatten(), (values + starts).flatten()
        self.qkv, self.proj = attention.qkv, attention.proj
        keep_slices(self.qkv, torch.cat([queries, queries + channels, values + 2 * channels]))
        keep_slices(self.proj, values, axis=1)
        self.gamma = getattr(attention, 'gamma1', nn.Identity())
        self.relative_position_bias_table: nn.Parameter | None = getattr(
            attention, 'relative_position_bias_table', None
        )
        if self.relative_position_bias_table is not None:
            index = attention.relative_position_index.flatten()
            self.register_buffer('relative_position_index', index)

    def forward(self, x: Tensor, mask: Tensor | None = None, **unused: Any) -> Tensor:
        """Map tokens ``x`` (N, L, C) to the same shape; ``mask`` (num_windows, L, L) is added."""
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(self.widths, dim=2)
        )
        attention = self.scale * query @ key.transpose(2, 3)
        if self.relative_position_bias_table is not None:
            bias = self.relative_position_bias_table[self.relative_position_index]
            attention = attention + bias.view(length, length, -1).permute(2, 0, 1)
        if mask is not None:
            windows = attention.view(-1, len(mask), *attention.shape[1:]) + mask[:, None]
            attention = windows.view_as(attention)
        output = attention.softmax(-1) @ value
        return self.gamma(self.proj(output.transpose(1, 2).flatten(2)))


# By name, since both libraries are optional.
ATTENTION_CLASSES = (
    'mmpretrain.models.utils.attention.WindowMSA',
    'mmpretrain.models.utils.attention.MultiheadAttention',
    'timm.layers.attention.Attention',
    'timm.models.swin_transformer.WindowAttention',
)


def is_plain_attention(attention: Any) -> bool:
    """Return whether an attention has only what :class:`PrunedAttention` supports."""
    extras = [getattr(attention, name, None) for name in ('q_norm', 'k_norm', 'norm', 'gate')]
    return (
        isinstance(getattr(attention, 'qkv', None), nn.Linear)
        and attention.qkv.out_features == 3 * attention.proj.in_features
        and all(module is None or isinstance(module, nn.Identity) for module in extras)
        and not getattr(attention, 'v_shortcut', False)
    )


def output_changes(layer: Any) -> Tensor:
    """Sum gradient times weight and bias over the parameters of each output of a layer."""
    change = weight_times_gradient(layer.weight).reshape(len(layer.weight), -1).sum(1)
    return change if layer.bias is None else change + weight_times_gradient(layer.bias)


def weight_times_gradient(weight: Tensor) -> Tensor:
    """Multiply a parameter by its gradient, which is 0 if the loss does not depend on it."""
    return torch.zeros_like(weight) if weight.grad is None else weight * weight.grad


# Tensors and sizes of convolutions, linear and norm layers by axis: of outputs and of inputs.
SLICED = (
    (
        ('weight', 'bias', 'running_mean', 'running_var'),
        ('out_channels', 'out_features', 'num_features'),
    ),
    (('weight',), ('in_channels', 'in_features')),
)


def keep_slices(layer: Any, index: Tensor, axis: int = 0) -> None:
    """Keep some outputs (axis 0) or inputs (axis 1) of a layer, in place."""
    tensors, sizes = SLICED[axis]
    for name in tensors:
        if (value := getattr(layer, name, None)) is not None:
            value.data = value.data.index_select(axis, index.to(value.device))
    for name in sizes:
        if hasattr(layer, name):
            setattr(layer, name, len(index))
