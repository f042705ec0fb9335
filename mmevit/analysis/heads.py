"""Similarity between the heads of an attention (Section 2.2, Figure 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmevit.utils.errors import ConfigError

from .runtime import module_contexts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def head_similarity(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Compute the cosine similarity of each head's attention map with the most similar other one.

    Supports all attention that calls PyTorch's softmax or ``scaled_dot_product_attention()``, once
    for all heads, (N, num_heads, L, L), or head by head, (N, L, L). ``nn.MultiheadAttention`` is
    not supported. Padding of windows is included.

    Args:
        network: The network, in evaluation mode.
        batches: Images, (N, 3, H, W).

    Returns:
        For each attention by its name in the network, in order: (num_heads,), from 0 to 1, the
        mean over the images and their windows.

    Raises:
        ConfigError: If no attention has more than one head.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> batches = [torch.rand(2, 3, 64, 64)]
        >>> for name, heads in head_similarity(EfficientViT('m0').eval(), batches).items():
        ...     print(name, tuple(heads.shape))
        ...     break
        stages.0.0.attention.branch.attention (4,)
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    recorder = AttentionMapRecorder()
    with module_contexts(network, recorder.in_module):
        for images in batches:
            with recorder:
                network(images)
            for path, maps in recorder.pop_maps().items():
                similarity = max_similarity(maps)
                sums[path] = sums.get(path, 0) + similarity.sum(0)
                counts[path] += len(similarity)
    if not sums:
        raise ConfigError(
            f'{type(network).__name__} has no attention of more than one head. '
            'Choose a network with multi-head attention.'
        )
    return {path: total / counts[path] for path, total in sums.items()}


def max_similarity(maps: Tensor) -> Tensor:
    """Compute each head's largest cosine similarity with another one, (N, num_heads).

    Args:
        maps: Attention maps, (N, num_heads, L, L).

    Example:
        >>> maps = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [2, 0, 0, 2]]).view(1, 3, 2, 2)
        >>> max_similarity(maps).round(decimals=4)
        tensor([[1., 0., 1.]])
    """
    heads = F.normalize(maps.flatten(2), dim=2)
    similarity = heads @ heads.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    return similarity.amax(2)


class AttentionMapRecorder(TorchFunctionMode):
    """Records the attention maps that a network computes, by the module that computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.maps: dict[str, list[Tensor]] = defaultdict(list)

    @contextmanager
    def in_module(self, path: str) -> Iterator[None]:
        """Record maps under the name ``path``."""
        self.paths.append(path)
        yield
        self.paths.pop()

    def pop_maps(self) -> dict[str, Tensor]:
        """Return and clear the maps of multi-head attention, (N, num_heads, L, L) for each."""
        recorded, self.maps = self.maps, defaultdict(list)
        stacked = {
            path: torch.cat(maps) if maps[0].dim() == 4 else torch.stack(maps, dim=1)
            for path, maps in recorded.items()
        }
        return {path: maps for path, maps in stacked.items() if maps.shape[1] > 1}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function and record its output if that is an attention map."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.maps[self.paths[-1]].append(attention_map(*args, **kwargs))
        elif func in SOFTMAX_FUNCTIONS and output.dim() in (3, 4):
            axis = kwargs['dim'] if 'dim' in kwargs else args[1]
            if axis in (-1, output.dim() - 1):
                self.maps[self.paths[-1]].append(output)
        return output


SOFTMAX_FUNCTIONS = (F.softmax, torch.softmax, torch.Tensor.softmax)


def attention_map(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **unused: Any,
) -> Tensor:
    """Compute the attention map inside PyTorch's ``scaled_dot_product_attention()``."""
    logits = (scale or query.shape[-1] ** -0.5) * query @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones_like(logits, dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(logits).masked_fill(~attn_mask, -torch.inf)
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1)


def plot_similarity(similarities: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Plot head similarity block by block, as in Figure 4 of the paper.

    A line for each network shows the mean over heads, the band around it the range.

    Args:
        similarities: For each network's name the result of :func:`head_similarity`.
    """
    # Not at the top: mmengine-lite does not install matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    for name, blocks in similarities.items():
        heads = [values.cpu() for values in blocks.values()]
        numbers = range(1, len(heads) + 1)
        means = [values.mean().item() for values in heads]
        label = f'{name}: {sum(means) / len(means):.2f}'
        (line,) = axes.plot(numbers, means, marker='o', label=label)
        lowest, highest = [values.min() for values in heads], [values.max() for values in heads]
        axes.fill_between(numbers, lowest, highest, color=line.get_color(), alpha=0.15, lw=0)
    axes.set_xlabel('attention block')
    axes.set_ylabel('largest cosine similarity with another head')
    axes.set_ylim(0, 1.03)
    axes.locator_params('x', integer=True)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside upper center', ncols=3, frameon=False)
    return figure
