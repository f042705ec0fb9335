"""Checks that weights fit a model. mmengine would load the part that fits, and log the rest."""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmevit.models import EfficientViT
from mmevit.models.efficientvit import infer_arch, select_weights
from mmevit.utils.errors import CheckpointError, list_problems, shorten, warn

from .names import FIRST_WEIGHT

# Key in the metadata of a state dict whose weights must fit the backbone completely.
MUST_FIT = 'must_fit'


def require_fit(checkpoint: dict) -> dict:
    """Mark weights, so that a backbone refuses to load them unless they fit.

    The mark is in ``_metadata`` of the state dict. PyTorch and mmengine pass each module the entry
    for its name.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict):
        return checkpoint
    first = f'.{FIRST_WEIGHT["mmevit"]}'
    names = {name.removesuffix(first) for name in map(str, weights) if name.endswith(first)}
    metadata = dict(getattr(weights, '_metadata', {}))
    for name in names | {'', 'backbone'}:
        metadata[name] = {**metadata.get(name, {}), MUST_FIT: True}
    marked = OrderedDict(weights)
    marked._metadata = metadata  # pyright: ignore[reportAttributeAccessIssue]
    return {**checkpoint, 'state_dict': marked} if 'state_dict' in checkpoint else marked


def check_before_loading(
    backbone: EfficientViT, state_dict: dict[str, Tensor], prefix: str, metadata: dict, *_: Any
) -> None:
    """Raise CheckpointError, with what to do, unless weights are exactly those of a backbone.

    Every backbone calls this before weights are loaded into it. It checks those that are marked by
    :func:`require_fit` or that a backbone is initialized with. Bias tables of other windows fit,
    since they are resized, and so do weights of stages that are not built.
    """
    weights = select_weights(state_dict, prefix)
    # If the backbone is part of a model, its weights may be missing in the checkpoint.
    if not (backbone.is_initializing or metadata.get(MUST_FIT)) or (prefix and not weights):
        return
    own = backbone.state_dict()
    num_stages = len(backbone.embed_dims)
    unbuilt = tuple(f'stages.{stage}.' for stage in range(len(backbone.stages), num_stages))
    problems = {
        'missing keys': [
            name for name in own if name not in weights and not name.endswith('num_batches_tracked')
        ],
        'unexpected keys': [
            name for name in weights if name not in own and not name.startswith(unbuilt)
        ],
        'size mismatch for': [
            f'{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}'
            for name, value in own.items()
            if name in weights and not can_load(name, weights[name], value)
        ],
    }
    if found := list_problems(problems):
        raise CheckpointError(
            f'The weights do not fit the backbone: {"; ".join(found)}. '
            f'{explain_misfit(backbone, weights)}'
        )


EfficientViT.load_hooks.append(check_before_loading)


def can_load(name: str, given: Tensor, own: Tensor) -> bool:
    """Whether a weight of a backbone can take a given value, resized if it is a bias table."""
    if name.endswith('attention_biases') and given.ndim == 2:
        is_square = round(given.shape[1] ** 0.5) ** 2 == given.shape[1]
        return given.shape[0] == own.shape[0] and is_square
    return given.shape == own.shape


def explain_misfit(backbone: EfficientViT, weights: dict[str, Tensor]) -> str:
    """Return a sentence on what the weights are of, and how to load them."""
    if 'backbone.stem.0.conv.weight' in weights:
        return (
            "They are of a complete model. Set prefix='backbone.' next to checkpoint in init_cfg."
        )
    if 'stem.0.conv.bias' in weights and not backbone.deploy:
        return 'They are folded. Build the model with deploy=True.'
    if 'stem.0.norm.weight' in weights and backbone.deploy:
        return 'They are not folded. Build without deploy, load, then call switch_to_deploy().'
    if arch := infer_arch(weights):
        return f'They fit arch={arch!r}.'
    return 'They fit none of the archs. Pass arch as the dict that they were trained with.'


def drop_mismatched_weights(model: nn.Module, checkpoint: dict) -> None:
    """Remove weights with size mismatches, such as those of a head for other classes.

    The model's own keep their initialization, and a warning lists them. Weights of a backbone stay.

    Raises:
        CheckpointError: If the checkpoint has no weights of the backbone.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    backbones = tuple(
        f'{name}.' if name else ''  # the model may be a backbone
        for name, module in model.named_modules()
        if isinstance(module, EfficientViT)
    )
    given = {name.removeprefix('module.'): name for name in weights}  # as mmengine loads them
    if backbones and not any(name.startswith(backbones) for name in given):
        raise CheckpointError(
            f'The checkpoint has no weights of the backbone. Its first keys are {shorten(given)}. '
            'For files of the authors or timm, set load_from=evit://PATH.'
        )
    mismatches = []
    for name, value in model.state_dict().items():
        weight = weights[given[name]] if name in given else value
        if weight.shape != value.shape and not name.startswith(backbones):
            mismatches.append(f'{name} {tuple(weight.shape)} instead of {tuple(value.shape)}')
            del weights[given[name]]
    if mismatches:
        warn(
            f'Size mismatch for {shorten(mismatches)}, as of a head for other classes. These '
            'weights are not loaded and start from their initialization.'
        )


def check_fit(model: nn.Module, checkpoint: dict) -> None:
    """Raise CheckpointError unless a checkpoint has exactly the weights of a model, all finite."""
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise CheckpointError('The checkpoint contains more than weights. Pass a state dict.')
    own, given = (
        {name.removeprefix('module.'): weight.shape for name, weight in state.items()}
        for state in (model.state_dict(), weights)
    )
    problems = {
        'missing keys': sorted(own.keys() - given.keys()),
        'unexpected keys': sorted(given.keys() - own.keys()),
        'size mismatch for': sorted(
            name
            for name in own.keys() & given.keys()
            # Bias tables of other windows are resized.
            if own[name] != given[name] and not name.endswith('attention_biases')
        ),
        'infinite or NaN values in': list_nonfinite(weights.items(), model),
    }
    if found := list_problems(problems):
        raise CheckpointError(
            f'The checkpoint does not fit the model of the config: {"; ".join(found)}.'
        )


def list_nonfinite(weights: Iterable[tuple[str, Tensor]], model: nn.Module) -> list[str]:
    """List the names of the weights that are NaN, or infinite if they are parameters.

    Buffers may be infinite on purpose. Names may have the prefix ``module.`` of an average.
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


def check_resumable(checkpoint: dict, name: str | Path = 'the checkpoint') -> None:
    """Raise CheckpointError if anything but weights is missing that resuming needs."""
    if missing := missing_state(checkpoint):
        raise CheckpointError(
            f'Cannot resume from {name}: {", ".join(sorted(missing))} missing. To start from its '
            'weights, pass --cfg-options load_from=... instead of --resume.'
        )


def missing_state(checkpoint: dict) -> set[str]:
    """List what resuming needs and is neither in a checkpoint nor in its ``meta``."""
    given = {*checkpoint, *(checkpoint.get('meta') or {})}
    return {'meta', 'epoch', 'iter', 'message_hub', 'optimizer'} - given
