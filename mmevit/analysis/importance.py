"""How much each channel matters, and networks without those that matter least (Figure 5).

From Section 2.3, and `Importance Estimation for Neural Network Pruning
<https://arxiv.org/abs/1906.10771>`_: what the loss would change by without a channel is, to first
order, the sum of gradient times weight over the weights that make it.
"""

from collections import Counter
from copy import deepcopy

import torch

from mmevit.utils.errors import ConfigError

from .prunable import find_parts


def channel_importance(network, batches, loss):
    """Compute the Taylor importance of the channels inside attention and FFNs.

    Args:
        network (nn.Module): The network, in evaluation mode.
        batches (Iterable): Batches of whatever ``loss`` takes; single images tell most.
        loss (Callable): Maps the network and a batch to the loss, a scalar.

    Returns:
        dict[str, dict[str, Tensor]]: For each part of the network by its name, and each kind of
        its channels, ``'query'``, ``'key'`` and ``'value'``, (num_heads, channels of a head), or
        ``'ffn'``, (1, channels): the mean over the batches of the squared change of the loss.

    Raises:
        ConfigError: If no part is known, or there is no batch.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> backbone = EfficientViT('m0').eval()
        >>> def loss(network, images):
        ...     return network(images)[-1].square().mean()
        >>> importance = channel_importance(backbone, [torch.rand(1, 3, 64, 64)], loss)
        >>> importance['stages.0.0.ffn0.branch']['ffn'].shape
        torch.Size([1, 128])
        >>> importance['stages.0.0.attention.branch.attention']['value'].shape
        torch.Size([4, 16])
    """
    # A copy, since frozen parameters get gradients too.
    network = deepcopy(network).requires_grad_()
    parts = find_parts(network)
    if not parts:
        raise ConfigError(f'{type(network).__name__} has no attention or FFN of a known kind.')
    sums, num_batches = {}, 0
    with torch.enable_grad():
        for batch in batches:
            network.zero_grad()
            loss(network, batch).backward()
            num_batches += 1
            for name, part in parts.items():
                for kind, change in part.changes().items():
                    squares = sums.setdefault(name, {}).setdefault(kind, torch.zeros_like(change))
                    squares += change.detach().square()
    if not num_batches:
        raise ConfigError('There is no image to compute the importance of channels by.')
    return {
        name: {kind: total / num_batches for kind, total in kinds.items()}
        for name, kinds in sums.items()
    }


def count_params(network):
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def prune(network, importance, budget, cost=count_params):
    """Take the channels that matter least for what they cost out of a network.

    Every head of an attention keeps as many channels, and a query loses those that its key does.
    The values of cascaded heads stay, since each is added to what the next head sees.

    Args:
        network (nn.Module): The network.
        importance (dict[str, dict[str, Tensor]]): As :func:`channel_importance` gives it.
        budget (int): What the pruned network may cost, at most; it costs as near to that as the
            last channels let it.
        cost (Callable[[nn.Module], int]): What a network costs. Defaults to :func:`count_params`.

    Returns:
        tuple[nn.Module, dict[str, dict[str, Tensor]]]: The pruned copy, and for each part and kind
        the channels that are left, (num_heads, channels of a head), in order.

    Raises:
        ConfigError: If so little cannot be had.

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
    slots = list(list_slots(network, importance, cost))
    slots.sort(key=lambda slot: slot['importance'] / slot['cost'], reverse=True)
    surplus, removed = cost(network) - budget, Counter()
    while surplus > 0 and slots:
        slot = slots.pop()
        # A part keeps one channel of each kind.
        if removed[slot['place']] + 1 < slot['channels']:
            removed[slot['place']] += 1
            surplus -= slot['cost']
    if surplus > 0:
        raise ConfigError(f'{budget} is too little: the network costs {budget + surplus} at least.')
    return take_out(network, importance, removed)


def list_slots(network, importance, cost):
    """List what can be taken out: of each part, a channel of every head at a time.

    Args:
        network (nn.Module): The network.
        importance (dict[str, dict[str, Tensor]]): Importance of its channels.
        cost (Callable[[nn.Module], int]): What a network costs.

    Yields:
        dict: ``place``, the part and the kind, ``importance``, ``cost``, and of how many
        ``channels`` it is one.
    """
    whole = cost(network)
    for name, part in find_parts(network).items():
        for kind in part.prunable:
            place = name, kind
            without, _ = take_out(network, importance, {place: 1})
            saved = whole - cost(without)
            # The r-th least important channels of all heads go together.
            for value in importance[name][kind].sort(dim=1).values.sum(0).tolist():
                yield dict(
                    place=place,
                    importance=value,
                    cost=saved,
                    channels=importance[name][kind].shape[1],
                )


def take_out(network, importance, removed):
    """Take the least important channels out of a copy of a network.

    Args:
        network (nn.Module): The network.
        importance (dict[str, dict[str, Tensor]]): Importance of its channels.
        removed (Mapping[tuple[str, str], int]): How many, by part and kind.

    Returns:
        tuple[nn.Module, dict[str, dict[str, Tensor]]]: See :func:`prune`.
    """
    pruned, kept = deepcopy(network), {}
    for name, part in find_parts(pruned).items():
        kept[name] = {}
        for kind in part.prunable:
            ranks = importance[name][kind].argsort(dim=1)
            kept[name][kind] = ranks[:, removed.get((name, kind), 0) :].sort(dim=1).values
        if any((name, kind) in removed for kind in part.prunable):
            part.keep(kept[name], pruned, name)
    return pruned, kept


def shares_kept(importance, kept):
    """Tell how many channels of each kind are left.

    Args:
        importance (dict[str, dict[str, Tensor]]): As :func:`channel_importance` gives it.
        kept (dict[str, dict[str, Tensor]]): As :func:`prune` gives it.

    Returns:
        list[dict]: For each ``part`` and ``kind`` the ``channels`` of a head, those ``kept`` of
        them, and the ``share``. Keys are as many as queries.
    """
    rows = []
    for name, kinds in importance.items():
        for kind, values in kinds.items():
            left = kept[name].get('query' if kind == 'key' else kind, values)
            share = left.shape[1] / values.shape[1]
            rows.append(
                dict(
                    part=name,
                    kind=kind,
                    channels=values.shape[1],
                    kept=left.shape[1],
                    share=share,
                )
            )
    return rows


def plot_kept(rows):
    """Draw how many channels of each block are left, as in Figure 5 of the paper.

    Args:
        rows (list[dict]): As :func:`shares_kept` gives them.

    Returns:
        matplotlib.figure.Figure: A panel for queries and keys, values, and FFNs, and in it a bar
        for each part.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.figure import Figure

    panels = dict(query='queries and keys', value='values', ffn='FFNs')
    figure = Figure(figsize=(10, 3), layout='constrained')
    for axes, (kind, title) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        shares = [100 * row['share'] for row in rows if row['kind'] == kind]
        numbers = range(1, len(shares) + 1)
        axes.bar(numbers, [100] * len(shares), color='0.9')
        axes.bar(numbers, shares, color='tab:blue')
        axes.set_title(title)
        axes.set_xlabel('block')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[['top', 'right']].set_visible(False)
    figure.axes[0].set_ylabel('channels kept, %')
    return figure
