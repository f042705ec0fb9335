"""How much alike the heads of an attention are (Section 2.2, Figure 4)."""

from collections import defaultdict
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmevit.utils.errors import ConfigError

from .runtime import in_modules


@torch.no_grad()
def head_similarity(network, batches):
    """Measure how much the attention maps of each head are like those of the head most like it.

    Works with all attention that calls PyTorch's softmax or ``scaled_dot_product_attention()``, be
    it once for all heads, (N, num_heads, L, L), or head by head, (N, L, L). It does not see into
    ``nn.MultiheadAttention``. Where windows are padded, their padding counts too.

    Args:
        network (nn.Module): The network, in evaluation mode.
        batches (Iterable[Tensor]): Images, (N, 3, H, W).

    Returns:
        dict[str, Tensor]: For each attention in order, by its name in the network, and for each of
        its heads, (num_heads,), the largest cosine similarity of its attention map with those of
        the other heads, from 0 to 1, the mean over the images and their windows.

    Raises:
        ConfigError: If there is no attention of more than one head.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> batches = [torch.rand(2, 3, 64, 64)]
        >>> for name, heads in head_similarity(EfficientViT('m0').eval(), batches).items():
        ...     print(name, tuple(heads.shape))
        ...     break
        stages.0.0.attention.branch.attention (4,)
    """
    sums, counts = defaultdict(float), defaultdict(int)
    recorder = MapRecorder()
    with in_modules(network, recorder.inside):
        for images in batches:
            with recorder:
                network(images)
            for path, maps in recorder.take().items():
                similarity = max_similarity(maps)
                sums[path] += similarity.sum(0)
                counts[path] += len(similarity)
    if not sums:
        raise ConfigError(f'{type(network).__name__} has no attention of more than one head.')
    return {path: sums[path] / counts[path] for path in sums}


def max_similarity(maps):
    """Compute each head's largest cosine similarity with another one.

    Args:
        maps (Tensor): Attention maps, (N, num_heads, L, L).

    Returns:
        Tensor: (N, num_heads).

    Example:
        >>> maps = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [2, 0, 0, 2]]).view(1, 3, 2, 2)
        >>> max_similarity(maps).round(decimals=4)
        tensor([[1., 0., 1.]])
    """
    heads = F.normalize(maps.flatten(2), dim=2)
    similarity = heads @ heads.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    return similarity.amax(2)


class MapRecorder(TorchFunctionMode):
    """Records the attention maps that a network computes, by the module that does."""

    def __init__(self):
        super().__init__()
        self.paths = []
        self.maps = defaultdict(list)

    @contextmanager
    def inside(self, path):
        """Record for a module."""
        self.paths.append(path)
        yield
        self.paths.pop()

    def take(self):
        """Hand out what was recorded: (N, num_heads, L, L) for each attention of several heads."""
        recorded, self.maps = self.maps, defaultdict(list)
        stacked = {
            path: torch.cat(maps) if maps[0].dim() == 4 else torch.stack(maps, dim=1)
            for path, maps in recorded.items()
        }
        return {path: maps for path, maps in stacked.items() if maps.shape[1] > 1}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call a function, and record what is an attention map."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.record(attention_map(*args, **kwargs))
        elif func in SOFTMAXES and output.dim() in (3, 4):
            axis = kwargs['dim'] if 'dim' in kwargs else args[1]
            if axis in (-1, output.dim() - 1):
                self.record(output)
        return output

    def record(self, attention):
        """Keep a map for the module that is being run."""
        self.maps[self.paths[-1]].append(attention)


SOFTMAXES = (F.softmax, torch.softmax, torch.Tensor.softmax)


def attention_map(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **unused
):
    """Compute the map that PyTorch's ``scaled_dot_product_attention()`` multiplies values by."""
    scale = scale or query.shape[-1] ** -0.5
    scores = scale * query @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(scores).masked_fill(~attn_mask, -torch.inf)
    return (scores if attn_mask is None else scores + attn_mask).softmax(-1)


def plot_similarity(similarities):
    """Draw how much alike heads are, block by block, as in Figure 4 of the paper.

    Args:
        similarities (dict[str, dict[str, Tensor]]): For each network's name what
            :func:`head_similarity` gave.

    Returns:
        matplotlib.figure.Figure: A line for each network, the mean over heads, between the head
        least and the head most like another.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name, blocks in similarities.items():
        heads = [values.cpu() for values in blocks.values()]
        numbers = range(1, len(heads) + 1)
        mean = sum(values.mean().item() for values in heads) / len(heads)
        (line,) = axes.plot(
            numbers, [values.mean() for values in heads], marker='o', label=f'{name}: {mean:.2f}'
        )
        lowest, highest = [values.min() for values in heads], [values.max() for values in heads]
        axes.fill_between(numbers, lowest, highest, color=line.get_color(), alpha=0.15, lw=0)
    axes.set_xlabel('attention block')
    axes.set_ylabel('largest cosine similarity with another head')
    axes.set_ylim(0, 1.03)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper center', ncols=3, frameon=False)
    return figure
