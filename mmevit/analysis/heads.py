"""Similarity between the heads of an attention (Section 2.2, Figure 4)."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from mmevit.utils.errors import ConfigError

from .runtime import running_modules


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
        >>> heads = head_similarity(EfficientViT('m0').eval(), [torch.rand(2, 3, 64, 64)])
        >>> heads['stages.0.0.attention.branch.attention'].shape
        torch.Size([4])
    """
    similarities: dict[str, list[Tensor]] = defaultdict(list)
    with running_modules(network) as paths:
        for images in batches:
            with AttentionMapRecorder(paths) as recorder:
                network(images)
            for path, maps in recorder.maps.items():
                heads = torch.cat(maps) if maps[0].dim() == 4 else torch.stack(maps, dim=1)
                if heads.shape[1] > 1:
                    similarities[path].append(max_similarity(heads))
    if not similarities:
        raise ConfigError(
            f'{type(network).__name__} has no attention of more than one head. '
            'Choose a network with multi-head attention.'
        )
    return {path: torch.cat(parts).mean(0) for path, parts in similarities.items()}


def max_similarity(maps: Tensor) -> Tensor:
    """Compute the largest similarity of heads (N, num_heads) from maps (N, num_heads, L, L)."""
    heads = F.normalize(maps.flatten(2), dim=2)
    similarity = heads @ heads.transpose(1, 2)
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    return similarity.amax(2)


class AttentionMapRecorder(TorchFunctionMode):
    """Records attention maps by the module that computes them, the last one of ``paths``."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self.paths = paths
        self.maps: dict[str, list[Tensor]] = defaultdict(list)

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
        elif func in (F.softmax, torch.softmax, Tensor.softmax) and output.dim() in (3, 4):
            axis = kwargs['dim'] if 'dim' in kwargs else args[1]
            if axis in (-1, output.dim() - 1):
                self.maps[self.paths[-1]].append(output)
        return output


def attention_map(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute the attention map inside PyTorch's ``scaled_dot_product_attention()``."""
    # With the unit matrix as values, the output is the map.
    units = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
    units = units.expand(*value.shape[:-2], -1, -1)
    return F.scaled_dot_product_attention(query, key, units, *args, **kwargs)
