"""Equally fast networks with different shares of attention layers (Figure 3, speed)."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError


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
        measure: Computes the speed of a network relative to another one.

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
    """Choose the next FFN ratio, at least 0.1: time grows almost linearly with the ratio."""
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
    times = [[time_run(model, images) for model in pair] for _ in range(rounds)]
    return float(np.median([slow / fast for slow, fast in times]))


def time_run(model: nn.Module, images: Tensor) -> float:
    """Measure the seconds of one run."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_subnetwork(name: str, attention_share: float, ffn_ratio: float) -> nn.Module:
    """Build the backbone of Swin-T or DeiT-T: see :func:`find_subnetwork`.

    Example:
        >>> network = make_subnetwork('deit-t', 0.25, 4.0)
        >>> [type(layer).__name__ for layer in network.layers[:4]]
        ['FFNLayer', 'AttentionLayer', 'FFNLayer', 'FFNLayer']
        >>> network(torch.rand(1, 3, 224, 224))[0].shape
        torch.Size([1, 192])
    """
    if name == 'swin-t':
        arch = dict(embed_dims=96, depths=[4, 4, 12, 4], num_heads=[3, 6, 12, 24])
        network: Any = SwinTransformer(arch=arch)  # pyright: ignore[reportArgumentType]
        stages = [stage.blocks for stage in network.stages]
    elif name == 'deit-t':
        arch = dict(embed_dims=192, num_layers=24, num_heads=3, feedforward_channels=768)
        network = VisionTransformer(arch=arch)  # pyright: ignore[reportArgumentType]
        stages = [network.layers]
    else:
        raise ConfigError(f'Unknown network {name!r}. Choose swin-t or deit-t.')
    # Rounding spreads the attention layers evenly.
    counts = [round(attention_share * position + 1e-6) for position in range(25)]
    is_attention = (before < after for before, after in itertools.pairwise(counts))
    for blocks in stages:
        # The attentions are used in order, since every other one of Swin has shifted windows.
        originals = list(blocks)
        attentions = map(AttentionLayer, originals)
        for index, block in enumerate(originals):
            chosen = next(is_attention)
            blocks[index] = next(attentions) if chosen else FFNLayer(block, ffn_ratio)
    network.eval()  # returns None in mmpretrain
    return network


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
