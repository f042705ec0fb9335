"""Networks with more or fewer attention layers that are equally fast (Figure 3, speed)."""

import itertools
import time

import numpy as np
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn

from mmevit.utils.errors import ConfigError


def find_subnetwork(name, attention_share, speedup, measure):
    """Find how wide the FFNs may be in a network of so much attention that is so fast.

    There are as many layers as in the original, attention and FFNs evenly mixed.

    Args:
        name (str): ``'swin-t'`` or ``'deit-t'``.
        attention_share (float): Attention layers, of all layers; the original has 0.5.
        speedup (float): Speed, relative to the original.
        measure (Callable[[nn.Module, nn.Module], float]): Tells how many times as fast as another
            a network is, such as :func:`measure_speedup`.

    Returns:
        tuple[nn.Module, float, float]: The network, how many times as wide its FFNs are inside,
        and its speed, relative to the original.

    Raises:
        ConfigError: If no width makes it so fast.
    """
    original = make_subnetwork(name, 0.5, 4.0)
    speeds = {}
    ratio = 2.0
    while len(speeds) < 6 and ratio not in speeds:
        network = make_subnetwork(name, attention_share, ratio)
        speeds[ratio] = measure(network, original)
        if abs(speeds[ratio] / speedup - 1) < 0.01:
            break
        ratio = next_ratio(speeds, speedup)
    ratio = min(speeds, key=lambda ratio: abs(speeds[ratio] - speedup))
    if abs(speeds[ratio] / speedup - 1) > 0.1:
        raise ConfigError(
            f'{name} with {attention_share:.0%} attention is {speeds[ratio]:.2f} times as fast as '
            f'the original at best, not {speedup}: ask for another speed.'
        )
    return make_subnetwork(name, attention_share, ratio), ratio, speeds[ratio]


def next_ratio(speeds, speedup):
    """Choose the next width to try: time grows with the width nearly as a line does.

    Args:
        speeds (dict[float, float]): Speeds of the widths that were tried.
        speedup (float): The speed that is looked for.

    Returns:
        float: The width, 0.1 at least.
    """
    if len(speeds) == 1:
        return 4.0 if speeds[2.0] > speedup else 1.0
    slope, start = np.polyfit(list(speeds), [1 / speed for speed in speeds.values()], 1)
    return max(round((1 / speedup - start) / slope, 2), 0.1)


@torch.no_grad()
def measure_speedup(network, original, images, rounds):
    """Measure in turns how many times as fast as another a network is.

    Args:
        network (nn.Module): The network.
        original (nn.Module): The other one.
        images (Tensor): A batch.
        rounds (int): Turns.

    Returns:
        float: The median over the turns.
    """
    pair = (original.to(images.device), network.to(images.device))
    for model in pair:
        model(images)
    ratios = []
    for _ in range(rounds):
        slow, fast = (seconds(model, images) for model in pair)
        ratios.append(slow / fast)
    return float(np.median(ratios))


def seconds(model, images):
    """Time one run."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def make_subnetwork(name, attention_share, ffn_ratio):
    """Make Swin-T or DeiT-T with another share of attention layers.

    Args:
        name (str): ``'swin-t'`` or ``'deit-t'``.
        attention_share (float): Attention layers, of all layers, from 0 to 1.
        ffn_ratio (float): How many times as wide FFNs are inside.

    Returns:
        nn.Module: The backbone, in evaluation mode.

    Raises:
        ConfigError: If there is no network of that name.

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
        network = SwinTransformer(arch=arch)
        stages = [stage.blocks for stage in network.stages]
    elif name == 'deit-t':
        arch = dict(embed_dims=192, num_layers=24, num_heads=3, feedforward_channels=768)
        network = VisionTransformer(arch=arch)
        stages = [network.layers]
    else:
        raise ConfigError(f'There is no network {name}: choose from swin-t and deit-t.')
    # Rounded, attention comes in the middle of what belongs to it.
    counts = [round(attention_share * position + 1e-6) for position in range(25)]
    is_attention = [before < after for before, after in itertools.pairwise(counts)]
    for blocks in stages:
        chosen, is_attention = is_attention[: len(blocks)], is_attention[len(blocks) :]
        for index, layer in enumerate(split_blocks(blocks, chosen, ffn_ratio)):
            blocks[index] = layer
    network.eval()
    return network


def split_blocks(blocks, is_attention, ffn_ratio):
    """Make of every block a layer of attention or an FFN.

    Args:
        blocks (Sequence[nn.Module]): Blocks of mmpretrain's, each with both.
        is_attention (Sequence[bool]): Which it is to be.
        ffn_ratio (float): How many times as wide FFNs are inside.

    Returns:
        list[nn.Module]: As many layers.
    """
    # Every other attention of Swin has shifted windows.
    attentions = map(AttentionLayer, list(blocks))
    return [
        next(attentions) if chosen else FFNLayer(block, ffn_ratio)
        for block, chosen in zip(blocks, is_attention, strict=True)
    ]


class AttentionLayer(nn.Module):
    """The attention of a block, with its norm layer and its residual.

    Args:
        block (nn.Module): A block of Swin or ViT.
    """

    def __init__(self, block):
        super().__init__()
        self.norm, self.attention = block.norm1, block.attn

    def forward(self, x, *shape):
        """Map tokens ``x`` (N, L, C) to the same shape; Swin gives the ``shape`` of the map."""
        return x + self.attention(self.norm(x), *shape)


class FFNLayer(nn.Module):
    """A feed-forward network in place of a block, with its norm layer and its residual.

    Args:
        block (nn.Module): The block, whose norm layer it takes.
        ratio (float): How many times as wide it is inside.
    """

    def __init__(self, block, ratio):
        super().__init__()
        self.norm = block.norm2
        (channels,) = self.norm.normalized_shape
        self.ffn = FFN(channels, max(round(ratio * channels), 1), act_cfg=dict(type='GELU'))

    def forward(self, x, *shape):
        """Map tokens ``x`` (N, L, C) to the same shape."""
        return self.ffn(self.norm(x), identity=x)


def plot_memory_bound(rows):
    """Draw how much of the time memory bounds, by the share of attention.

    Args:
        rows (list[dict]): For each network its ``name``, ``attention`` and ``memory_bound``, shares
            from 0 to 1.

    Returns:
        matplotlib.figure.Figure: A line for each name.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
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
    axes.set_ylabel('time bound by memory, %')
    axes.set_ylim(bottom=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    return figure
