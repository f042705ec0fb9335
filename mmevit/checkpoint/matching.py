"""Checks that weights fit a model. mmengine would load the part that fits, and log the rest."""

import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError, list_problems, shorten

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
    backbone: EfficientViT,
    state_dict: dict[str, Tensor],
    prefix: str,
    local_metadata: dict,
    *_: Any,
) -> None:
    """Check weights that are marked by :func:`require_fit` or that a backbone is initialized with.

    Every backbone calls this before weights are loaded into it.

    Raises:
        CheckpointError: If they do not fit.
    """
    if backbone.is_initializing or local_metadata.get(MUST_FIT):
        weights = select_weights(state_dict, prefix)
        # A backbone that is part of a model may be missing in what is loaded.
        if weights or not prefix:
            check_backbone_weights(backbone, weights)


EfficientViT.load_hooks.append(check_before_loading)


def check_backbone_weights(backbone: EfficientViT, weights: dict[str, Tensor]) -> None:
    """Check that weights are those of a backbone, all of them and no others.

    Bias tables of other windows fit, since they are resized, and so do weights of stages that are
    not built.

    Raises:
        CheckpointError: If they do not fit, with what to do.
    """
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


def infer_arch(weights: dict[str, Tensor]) -> str | None:
    """Infer the arch of a backbone's weights from their shapes.

    Returns:
        A name of ``EfficientViT.arch_zoo``, or None if none fits.

    Example:
        >>> infer_arch(EfficientViT('m2').state_dict())
        'm2'
    """
    for name in EfficientViT.arch_zoo:
        with torch.device('meta'):
            model = EfficientViT(name)
        shapes = {
            key: value.shape
            for key, value in model.state_dict().items()
            if key.endswith('conv.weight')
        }
        if {key: value.shape for key, value in weights.items() if key in shapes} == shapes:
            return name
    return None


def infer_window_sizes(weights: dict[str, Tensor]) -> list[int] | None:
    """Infer the window size of each stage from a backbone's bias tables.

    Returns:
        The window sizes, or None if there are no bias tables, as in folded weights.

    Example:
        >>> infer_window_sizes(EfficientViT('m2', window_sizes=(7, 7, 4)).state_dict())
        [7, 7, 4]
    """
    windows = {
        int(name.split('.')[1]): round(table.shape[1] ** 0.5)
        for name, table in weights.items()
        if name.endswith('attention_biases')
    }
    return [window for _, window in sorted(windows.items())] or None


def select_weights(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the weights of a part of a model, by their names in the part.

    Example:
        >>> weights = {'backbone.stem.0.conv.weight': 1, 'head.head.bn.weight': 2}
        >>> select_weights(weights, 'backbone.')
        {'stem.0.conv.weight': 1}
    """
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }


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
    others = {
        given[name]: f'{name} {tuple(weights[given[name]].shape)} instead of {tuple(value.shape)}'
        for name, value in model.state_dict().items()
        if name in given
        and weights[given[name]].shape != value.shape
        and not name.startswith(backbones)
    }
    for name in others:
        del weights[name]
    if others:
        print_log(
            f'Size mismatch for {shorten(others.values())}, as of a head for other classes. These '
            'weights are not loaded and start from their initialization.',
            logger='current',
            level=logging.WARNING,
        )


def check_fit(model: nn.Module, checkpoint: dict) -> None:
    """Check that a checkpoint has exactly the weights of a model.

    Raises:
        CheckpointError: If there are missing or unexpected keys, size mismatches, or weights that
            are infinite or NaN.
    """
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
    """Check that a checkpoint has what resuming needs in addition to weights.

    Raises:
        CheckpointError: If something is missing.
    """
    if missing := missing_state(checkpoint):
        raise CheckpointError(
            f'Cannot resume from {name}: {", ".join(sorted(missing))} missing. To start from its '
            'weights, pass --cfg-options load_from=... instead of --resume.'
        )


def missing_state(checkpoint: dict) -> set[str]:
    """List what resuming needs and is neither in a checkpoint nor in its ``meta``."""
    given = {*checkpoint, *(checkpoint.get('meta') or {})}
    return {'meta', 'epoch', 'iter', 'message_hub', 'optimizer'} - given
