"""Convert checkpoint files between the formats of mmevit, the authors and timm."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmevit.utils.errors import CheckpointError
from mmevit.utils.files import atomic_write, check_ending
from mmevit.version import __version__

from .loader import find_dataset_meta, find_state_dict
from .matching import infer_arch, select_weights
from .names import convert_names
from .reading import read_checkpoint


def convert_checkpoint(source: str | Path, destination: str | Path, target: str) -> dict:
    """Convert a checkpoint file. The tensors stay bit-exact.

    Args:
        source: ``.pth`` or ``.safetensors``, of any format.
        destination: ``.pth`` or ``.safetensors``, to be written.
        target: ``'mmevit'``, ``'released'`` or ``'timm'``.

    Returns:
        The metadata that was written.

    Raises:
        CheckpointError: If the source cannot be read or recognized, or has missing or unexpected
            keys.
        UserError: If the destination has another suffix or cannot be written.
    """
    source, destination = Path(source), Path(destination)
    check_ending(destination, ('.pth', '.safetensors'))
    checkpoint = read_checkpoint(source)
    try:
        state_dict = find_state_dict(checkpoint)
        ours = convert_names(state_dict, 'mmevit')
        converted = convert_names(ours, target)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    meta = describe(source, checkpoint.get('meta'), ours)
    with atomic_write(destination) as path:
        write_checkpoint(converted, meta, target, path)
    return meta


def describe(source: Path, meta: object, weights: dict[str, Tensor]) -> dict:
    """Make the metadata of converted weights.

    Args:
        source: The file with the weights.
        meta: The metadata of that file. Its classes are kept.
        weights: The weights, with keys in mmevit's format.

    Returns:
        ``arch``, ``source``, ``sha256`` of the source, ``mmevit_version``, and ``dataset_meta`` if
        the classes are known.
    """
    described: dict = dict(
        arch=infer_arch(select_weights(weights, 'backbone.')) or 'custom',
        source=source.name,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        mmevit_version=__version__,
    )
    if dataset_meta := find_dataset_meta(meta):
        described['dataset_meta'] = dataset_meta
    return described


def write_checkpoint(weights: dict[str, Tensor], meta: dict, target: str, path: Path) -> None:
    """Write weights in the file format of the suffix."""
    if path.suffix == '.safetensors':
        write_safetensors(weights, meta, path)
    elif target == 'mmevit':
        torch.save(dict(meta=meta, state_dict=weights), path)
    else:
        # As in the released files. timm's own loading finds weights there too.
        torch.save(dict(model=weights, meta=meta), path)


def write_safetensors(weights: dict[str, Tensor], meta: dict, path: Path) -> None:
    """Write weights as ``.safetensors``, whose metadata may only be strings."""
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    meta = {name: v if isinstance(v, str) else json.dumps(v) for name, v in meta.items()}
    save_file(weights, path, metadata=meta)
