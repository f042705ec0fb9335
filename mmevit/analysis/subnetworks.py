"""Equally fast networks with different shares of attention layers (Figure 3, speed)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def find_subnetwork(
    name: str,
    attention_share: float,
    speedup: float,
    measure: Callable[[nn.Module, nn.Module], float],
) -> tuple[nn.Module, float, float]:
    """Find the FFN ratio with which a network with some share of attention reaches a speedup.

    The number of layers stays; attention and FFNs are evenly mixed.

    Args:
        name: ``'swin-t'`` or ``'deit-t'``.
        attention_share: Share of attention layers, from 0 to 1; 0.5 in the original.
        speedup: Speed relative to the original.
        measure: Computes the speed of its first network relative to its second, such as
            :func:`measure_speedup`.

    Returns:
        The network, its FFN ratio, and its speedup.

    Raises:
        ConfigError: If no FFN ratio comes within 10 % of the speedup.
    """
    original = make_subnetwork(name, 0.5, 4.0)
    speedups: dict[float, float] = {}
    ratio = 2.0
    while len(speedups) < 6 and ratio not in speedups:
        network = make_subnetwork(name, attention_share, ratio)
        speedups[ratio] = measure(network, original)
        if abs(speedups[ratio] / speedup - 1) < 0.01:
            break
        ratio = next_ratio(speedups, speedup)
    ratio = min(speedups, key=lambda ratio: abs(speedups[ratio] - speedup))
    if abs(speedups[ratio] / speedup - 1) > 0.1:
        raise ConfigError(
            f'{name} with {attention_share:.0%} attention cannot reach a speedup of {speedup}. '
            f'The closest is {speedups[ratio]:.2f}: choose another speedup.'
        )
    return make_subnetwork(name, attention_share, ratio), ratio, speedups[ratio]


def next_ratio(speedups: dict[float, float], speedup: float) -> float:
    """Choose the next FFN ratio, at least 0.1: time grows almost linearly with the ratio.

    Args:
        speedups: Measured speedups by FFN ratio.
        speedup: Target.
    """
    if len(speedups) == 1:
        return 4.0 if speedups[2.0] > speedup else 1.0
    slope, start = np.polyfit(list(speedups), [1 / value for value in speedups.values()], 1)
    return max(round((1 / speedup - start) / slope, 2), 0.1)


@torch.no_grad()
def measure_speedup(network: nn.Module, original: nn.Module, images: Tensor, rounds: int) -> float:
    """Time both networks alternately; return the median speed relative to ``original``."""
    pair = (original.to(images.device), network.to(images.device))
    for model in pair:
        model(images)
    ratios = []
    for _ in range(rounds):
        slow, fast = (time_run(model, images) for model in pair)
        ratios.append(slow / fast)
    return float(np.median(ratios))


def time_run(model: nn.Module, images: Tensor) -> float:
    """Measure the seconds of one run."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_subnetwork(name: str, attention_share: float, ffn_ratio: float) -> nn.Module:
    """Build the backbone of Swin-T or DeiT-T with another share of attention layers.

    Args:
        name: ``'swin-t'`` or ``'deit-t'``.
        attention_share: Share of attention layers, from 0 to 1.
        ffn_ratio: Hidden width of the FFNs relative to their input.

    Raises:
        ConfigError: If the name is unknown.

    Example:
        >>> network = make_subnetwork('deit-t', 0.25, 4.0)
        >>> [type(layer).__name__ for layer in network.layers[:4]]
        ['FFNLayer', 'AttentionLayer', 'FFNLayer', 'FFNLayer']
        >>> network(torch.rand(1, 3, 224, 224))[0].shape
        torch.Size([1, 192])
    """
    if name == 'swin-t':
        depths = (2, 2, 6, 2)
        arch = dict(embed_dims=96, depths=[2 * depth for depth in depths], num_heads=[3, 6, 12, 24])
        network = SwinTransformer(arch=arch)  # pyright: ignore[reportArgumentType]
        stages: list[Any] = [stage.blocks for stage in network.stages]
    elif name == 'deit-t':
        arch = dict(embed_dims=192, num_layers=24, num_heads=3, feedforward_channels=768)
        network = VisionTransformer(arch=arch)  # pyright: ignore[reportArgumentType]
        stages = [network.layers]
    else:
        raise ConfigError(f'Unknown network {name!r}. Choose swin-t or deit-t.')
    # Rounding spreads the attention layers evenly.
    counts = [round(attention_share * position + 1e-6) for position in range(25)]
    is_attention = [before < after for before, after in itertools.pairwise(counts)]
    for blocks in stages:
        chosen, is_attention = is_attention[: len(blocks)], is_attention[len(blocks) :]
        for index, layer in enumerate(split_blocks(blocks, chosen, ffn_ratio)):
            blocks[index] = layer
    network.eval()  # returns None in mmpretrain
    return network


def split_blocks(
    blocks: Sequence[nn.Module], is_attention: Sequence[bool], ffn_ratio: float
) -> list[nn.Module]:
    """Reduce every block to either its attention or an FFN."""
    # The attentions are used in order, since every other one of Swin has shifted windows.
    attentions = map(AttentionLayer, list(blocks))
    return [
        next(attentions) if chosen else FFNLayer(block, ffn_ratio)
        for block, chosen in zip(blocks, is_attention, strict=True)
    ]


class AttentionLayer(nn.Module):
    """The residual attention of a block of Swin or ViT."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm: nn.LayerNorm = block.norm1
        self.attention: nn.Module = block.attn

    def forward(self, x: Tensor, *shape: tuple[int, int]) -> Tensor:
        """Map tokens ``x`` (N, L, C) to the same shape; Swin also passes the map's ``shape``."""
        return x + self.attention(self.norm(x), *shape)


class FFNLayer(nn.Module):
    """A residual FFN with the norm layer of a block of Swin or ViT."""

    def __init__(self, block: Any, ratio: float) -> None:
        super().__init__()
        self.norm: nn.LayerNorm = block.norm2
        (channels,) = self.norm.normalized_shape
        self.ffn = FFN(channels, max(round(ratio * channels), 1), act_cfg=dict(type='GELU'))

    def forward(self, x: Tensor, *shape: tuple[int, int]) -> Tensor:
        """Map tokens ``x`` (N, L, C) to the same shape."""
        return self.ffn(self.norm(x), identity=x)


def plot_memory_bound(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot the share of time in memory-bound operators over the share of attention.

    Args:
        rows: For each network its ``name``, and ``attention`` and ``memory_bound`` from 0 to 1.
    """
    # Not at the top: mmengine-lite does not install matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for name in dict.fromkeys(row['name'] for row in rows):
        points = [
            (100 * row['attention'], 100 * row['memory_bound'])
            for row in rows
            if row['name'] == name
        ]
        axes.plot(*zip(*points, strict=True), marker='o', label=name)
    axes.set_xlabel('attention layers, % of all layers')
    axes.set_ylabel('time in memory-bound operators, %')
    axes.set_ylim(bottom=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    return figure
