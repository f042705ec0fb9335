"""What becomes of weights that do not fit, of which mmengine would load the rest."""

import logging
from collections import OrderedDict

from mmengine.logging import print_log
from torch import nn

from mmevit.errors import CheckpointError, shorten
from mmevit.models import EfficientViT

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
