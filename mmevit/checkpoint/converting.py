"""Convert checkpoint files between the forms of mmevit, the authors and timm."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmevit.utils.errors import CheckpointError
from mmevit.utils.files import atomic_write, check_ending
from mmevit.version import __version__

from .loader import find_dataset_meta, find_state_dict
from .matching import infer_arch, select_weights
from .names import convert_names
from .reading import read_checkpoint


def convert_checkpoint(source, destination, form):
    """Convert a checkpoint file; the tensors stay bit for bit what they are.

    Args:
        source (str | Path): ``.pth`` or ``.safetensors``, of any form.
        destination (str | Path): ``.pth`` or ``.safetensors``, to be written.
        form (str): ``'mmevit'``, ``'released'`` or ``'timm'``.

    Returns:
        dict: The metadata that was written.

    Raises:
        CheckpointError: If the source cannot be read or recognised, or has missing or surplus
            names.
        UserError: If the destination is of another kind or cannot be written.
    """
    source, destination = Path(source), Path(destination)
    check_ending(destination, ('.pth', '.safetensors'))
    checkpoint = read_checkpoint(source)
    try:
        state_dict = find_state_dict(checkpoint)
        ours = convert_names(state_dict, 'mmevit')
        converted = convert_names(ours, form)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    meta = describe(source, checkpoint.get('meta'), ours)
    with atomic_write(destination) as path:
        write_checkpoint(converted, meta, form, path)
    return meta


def describe(source, meta, weights):
    """Say where weights come from and what they are of.

    Args:
        source (Path): The file that they were in.
        meta (object): Metadata that were in it, of which the classes are kept.
        weights (dict[str, Tensor]): The weights in mmevit's names.

    Returns:
        dict: ``arch``, ``dataset_meta`` if the classes are known, ``source``, ``sha256`` of the
        source, and ``mmevit_version``.
    """
    described = dict(
        arch=infer_arch(select_weights(weights, 'backbone.')) or 'custom',
        source=source.name,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        mmevit_version=__version__,
    )
    if dataset_meta := find_dataset_meta(meta):
        described['dataset_meta'] = dataset_meta
    return described


def write_checkpoint(weights, meta, form, path):
    """Write weights by the suffix of the file.

    Args:
        weights (dict[str, Tensor]): The weights.
        meta (dict): Metadata.
        form (str): ``'mmevit'``, ``'released'`` or ``'timm'``.
        path (Path): The file.
    """
    if path.suffix == '.safetensors':
        write_safetensors(weights, meta, path)
    elif form == 'mmevit':
        torch.save(dict(meta=meta, state_dict=weights), path)
    else:
        # As the authors publish them; timm's own loading finds weights there too.
        torch.save(dict(model=weights, meta=meta), path)


def write_safetensors(weights, meta, path):
    """Write weights as ``.safetensors``, whose metadata are strings alone.

    Args:
        weights (dict[str, Tensor]): The weights.
        meta (dict): Metadata.
        path (Path): The file.
    """
    weights = {name: weight.contiguous() for name, weight in weights.items()}
    meta = {name: v if isinstance(v, str) else json.dumps(v) for name, v in meta.items()}
    save_file(weights, path, metadata=meta)
