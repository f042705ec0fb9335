"""What becomes of weights that do not fit, of which mmengine would load the rest."""

import logging
from collections import OrderedDict

import torch
from mmengine.logging import print_log
from torch import nn

from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError, list_problems, shorten

from .names import FIRST_WEIGHT


def require_fit(checkpoint: dict) -> dict:
    """Mark weights so that a backbone refuses them unless they fit, whoever loads them.

    PyTorch and mmengine pass a module what ``_metadata`` of the state dict has for its name.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict):
        return checkpoint
    first = f'.{FIRST_WEIGHT["mmevit"]}'
    names = {name.removesuffix(first) for name in map(str, weights) if name.endswith(first)}
    metadata = dict(getattr(weights, '_metadata', {}))
    for name in names | {'', 'backbone'}:
        metadata[name] = {**metadata.get(name, {}), EfficientViT.MUST_FIT: True}
    marked = OrderedDict(weights)
    marked._metadata = metadata
    return {**checkpoint, 'state_dict': marked} if 'state_dict' in checkpoint else marked


def leave_out_other_heads(model: nn.Module, checkpoint: dict) -> None:
    """Remove the weights whose shapes differ from the model's, such as of a head for other classes.

    They keep their initialization, and a warning names them. Those of a backbone stay.

    Raises:
        CheckpointError: If the checkpoint has no weights of the backbone.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    own = model.state_dict()
    backbones = tuple(
        f'{name}.' for name, module in model.named_modules() if isinstance(module, EfficientViT)
    )
    given = {name.removeprefix('module.'): name for name in weights}  # as mmengine loads them
    if backbones and not any(name.startswith(backbones) for name in given):
        raise CheckpointError(
            f'The checkpoint has no weights of the backbone, its first names are '
            f'{shorten(given)}. For files of the authors or timm, set load_from=evit://PATH.'
        )
    others = {
        given[name]: f'{name} {tuple(weights[given[name]].shape)} instead of {tuple(value.shape)}'
        for name, value in own.items()
        if name in given
        and weights[given[name]].shape != value.shape
        and not name.startswith(backbones)
    }
    for name in others:
        del weights[name]
    if others:
        print_log(
            'The checkpoint has weights of other shapes than the model, as of a head for other '
            f'classes: {shorten(others.values())}. They are not loaded and start from their '
            'initialization.',
            logger='current',
            level=logging.WARNING,
        )


def check_fit(model, checkpoint):
    """Check that a checkpoint is of a model as a whole.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): The checkpoint.

    Raises:
        CheckpointError: If it has fewer or more weights, or weights of other shapes, or some that
            are infinite or no numbers.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError('The checkpoint holds something else than weights.')
    own, given = (
        {name.removeprefix('module.'): weight.shape for name, weight in state.items()}
        for state in (model.state_dict(), weights)
    )
    problems = {
        'lacks': sorted(own.keys() - given.keys()),
        'has besides': sorted(given.keys() - own.keys()),
        'has in another shape': sorted(
            name
            for name in own.keys() & given.keys()
            # Bias tables of other windows are resized.
            if own[name] != given[name] and not name.endswith('attention_biases')
        ),
        'is not finite in': list_broken(weights.items(), model),
    }
    if found := list_problems(problems):
        raise CheckpointError(
            f'The checkpoint does not fit the model of the config: it {"; ".join(found)}.'
        )


def check_resumable(checkpoint, name='the checkpoint'):
    """Check that a checkpoint has what resuming needs in addition to weights.

    Args:
        checkpoint (dict): Its content.
        name (str | Path): Its name. Defaults to ``'the checkpoint'``.

    Raises:
        CheckpointError: If it lacks something.
    """
    if missing := missing_state(checkpoint):
        raise CheckpointError(
            f'Cannot resume from {name}: {", ".join(sorted(missing))} missing. To start from its '
            'weights, give --cfg-options load_from=... instead of --resume.'
        )


def missing_state(checkpoint):
    """List what resuming needs and a checkpoint lacks, in it or in its ``meta``."""
    given = {*checkpoint, *(checkpoint.get('meta') or {})}
    return {'meta', 'epoch', 'iter', 'message_hub', 'optimizer'} - given


def list_broken(weights, model):
    """List the weights that are infinite or no numbers.

    Args:
        weights (Iterable[tuple[str, Tensor]]): By name; those of an average have a prefix.
        model (nn.Module): The model, some of whose buffers may be infinite on purpose.

    Returns:
        list[str]: The names.
    """
    parameters = {name for name, _ in model.named_parameters()}
    return [
        name
        for name, weight in weights
        if torch.is_tensor(weight)
        and (
            weight.isnan().any()
            or (name.removeprefix('module.') in parameters and weight.isinf().any())
        )
    ]
