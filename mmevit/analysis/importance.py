"""Channel importance and pruning (Section 2.3, Figure 5).

From `Importance Estimation for Neural Network Pruning <https://arxiv.org/abs/1906.10771>`_: to
first order, removing a channel changes the loss by the sum of gradient times weight over the
weights that make it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError

from .prunable import find_prunable

Batch = TypeVar('Batch')
# By the name of a module, then by the kind of its channels.
TensorsByKind = dict[str, dict[str, Tensor]]


def channel_importance(
    network: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> TensorsByKind:
    """Compute the Taylor importance of the channels inside attention and FFNs.

    Args:
        network: The network, in evaluation mode.
        batches: Inputs of ``loss``; batches of one image give the best estimate.
        loss: Computes the loss, a scalar, from the network and a batch.

    Returns:
        For each attention and FFN by its name, and each kind of its channels, ``'query'``,
        ``'key'`` and ``'value'``, (num_heads, channels per head), or ``'ffn'``, (1, channels):
        the squared change of the loss, averaged over the batches.

    Raises:
        ConfigError: If the network has no supported module, or ``batches`` is empty.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> backbone = EfficientViT('m0').eval()
        >>> def loss(network, images):
        ...     return network(images)[-1].square().mean()
        >>> importance = channel_importance(backbone, [torch.rand(1, 3, 64, 64)], loss)
        >>> importance['stages.0.0.attention.branch.attention']['value'].shape
        torch.Size([4, 16])
    """
    # A copy, so that frozen parameters can have gradients too.
    network = deepcopy(network).requires_grad_()
    prunables = find_prunable(network)
    if not prunables:
        raise ConfigError(
            f'{type(network).__name__} has no attention or FFN that can be pruned. '
            'Choose a network of mmevit, or a ViT or Swin of mmpretrain or timm.'
        )
    sums: TensorsByKind = {name: {} for name in prunables}
    num_batches = 0
    with torch.enable_grad():
        for batch in batches:
            network.zero_grad()
            loss(network, batch).backward()
            num_batches += 1
            for name, prunable in prunables.items():
                for kind, change in prunable.loss_changes().items():
                    sums[name][kind] = sums[name].get(kind, 0) + change.detach().square()
    if not num_batches:
        raise ConfigError('Got no batches. Pass at least one.')
    return {
        name: {kind: total / num_batches for kind, total in kinds.items()}
        for name, kinds in sums.items()
    }


def count_params(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def prune(
    network: nn.Module,
    importance: TensorsByKind,
    budget: int,
    cost: Callable[[nn.Module], int] = count_params,
) -> tuple[nn.Module, TensorsByKind]:
    """Remove the channels with the least importance per cost from a copy of a network.

    All heads of an attention keep the same number of channels, and queries and keys are removed
    together. The values of cascaded heads stay, since each is added to the input of the next head.

    Args:
        network: The network.
        importance: Result of :func:`channel_importance`.
        budget: Maximum cost of the pruned network.
        cost: Computes the cost of a network. Defaults to :func:`count_params`.

    Returns:
        The pruned copy, and for each module and kind the channels that are left, (num_heads,
        channels per head), in ascending order.

    Raises:
        ConfigError: If pruning cannot reach the budget.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> backbone = EfficientViT('m0', out_indices=(0,)).eval()
        >>> def loss(network, images):
        ...     return network(images)[-1].square().mean()
        >>> importance = channel_importance(backbone, [torch.rand(1, 3, 64, 64)], loss)
        >>> pruned, _ = prune(backbone, importance, budget=60_000)
        >>> count_params(backbone), count_params(pruned) <= 60_000
        (69196, True)
    """
    candidates = sorted(
        list_candidates(network, importance, cost),
        key=lambda candidate: candidate.importance / candidate.cost,
        reverse=True,
    )
    excess, num_removed = cost(network) - budget, Counter()
    while excess > 0 and candidates:
        candidate = candidates.pop()
        # A module keeps at least one channel of each kind.
        if num_removed[candidate.place] + 1 < candidate.num_channels:
            num_removed[candidate.place] += 1
            excess -= candidate.cost
    if excess > 0:
        raise ConfigError(
            f'A budget of {budget} is too small. Choose at least {budget + excess}, which the '
            'network costs with one channel of each kind.'
        )
    return remove_channels(network, importance, num_removed)


class Candidate(NamedTuple):
    """One channel of every head of a module, which can be removed together."""

    place: tuple[str, str]  # name of the module, and kind of the channels
    importance: float
    cost: int
    num_channels: int  # of this kind per head


def list_candidates(
    network: nn.Module, importance: TensorsByKind, cost: Callable[[nn.Module], int]
) -> Iterator[Candidate]:
    """List all channels that can be removed."""
    full_cost = cost(network)
    for name, prunable in find_prunable(network).items():
        for kind in prunable.kinds:
            values = importance[name][kind]
            pruned, _ = remove_channels(network, importance, {(name, kind): 1})
            saved = full_cost - cost(pruned)
            # The r-th least important channels of all heads are removed together.
            for value in values.sort(dim=1).values.sum(0).tolist():
                yield Candidate((name, kind), value, saved, values.shape[1])


def remove_channels(
    network: nn.Module, importance: TensorsByKind, num_removed: Mapping[tuple[str, str], int]
) -> tuple[nn.Module, TensorsByKind]:
    """Remove the least important channels from a copy of a network: see :func:`prune`."""
    pruned, kept = deepcopy(network), {}
    for name, prunable in find_prunable(pruned).items():
        removed = {kind: num_removed.get((name, kind), 0) for kind in prunable.kinds}
        kept[name] = {
            kind: importance[name][kind].argsort(dim=1)[:, number:].sort(dim=1).values
            for kind, number in removed.items()
        }
        if any(removed.values()):
            prunable.keep_channels(kept[name], pruned, name)
    return pruned, kept


def shares_kept(importance: TensorsByKind, kept: TensorsByKind) -> list[dict[str, Any]]:
    """Compute the share of the channels that :func:`prune` has ``kept`` of each kind.

    Returns:
        For each ``part`` (the name of a module) and ``kind`` the ``channels`` per head, the number
        ``kept``, and the ``share``.
    """
    rows = []
    for name, kinds in importance.items():
        for kind, values in kinds.items():
            # Keys are pruned together with queries.
            left = kept[name].get('query' if kind == 'key' else kind, values)
            before, after = values.shape[1], left.shape[1]
            rows.append(
                dict(part=name, kind=kind, channels=before, kept=after, share=after / before)
            )
    return rows
