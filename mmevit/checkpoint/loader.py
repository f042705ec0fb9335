"""``evit://``: weights by name or from a file, in whatever form, wherever OpenMMLab loads some."""

import contextlib
import json
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import torch
from mmengine.dist import barrier, get_local_rank

from mmevit.errors import CheckpointError
from mmevit.files import written_whole

from .names import convert_names, find_form
from .reading import read_checkpoint

RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
RELEASED_FILES = {
    **{f'm{index}': f'efficientvit_m{index}.pth' for index in range(6)},
    'retinanet-m4': 'retinanet_efficientvit_m4_fpn_1x_coco.pth',
    'mask-rcnn-m4': 'mask_rcnn_efficientvit_m4_fpn_1x_coco.pth',
}


def load_from_evit(filename, map_location=None):
    """Load ``evit://NAME`` or ``evit://PATH``.

    Args:
        filename (str): ``evit://m0`` to ``evit://m5``, ``evit://retinanet-m4`` or
            ``evit://mask-rcnn-m4`` for the released weights, which are downloaded once; or
            ``evit://`` with the path of a local file of mmevit, mmcv 1.x, timm or the authors.
        map_location (str, optional): Device to load the tensors to.

    Returns:
        dict: ``meta`` and, in mmevit's names, ``state_dict``.

    Raises:
        CheckpointError: If the file cannot be had, read safely, or recognised.
    """
    name = filename.removeprefix('evit://')
    if name in RELEASED_FILES:
        path = fetch(RELEASED_FILES[name])
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise CheckpointError(
                f'{filename} is neither a file nor one of the names {", ".join(RELEASED_FILES)}.'
            )
    return read_weights(path, map_location)


def read_weights(path, map_location='cpu'):
    """Read a checkpoint of any form.

    Args:
        path (Path): The file.
        map_location (str): Device to load the tensors to. Defaults to ``'cpu'``.

    Returns:
        dict: A checkpoint as mmengine's, with ``meta`` and ``state_dict`` in mmevit's names; what
        else was in a checkpoint of mmengine is kept.

    Raises:
        CheckpointError: If it cannot be read or recognised.
    """
    checkpoint = read_checkpoint(path, map_location)
    state_dict = find_state_dict(checkpoint, path)
    try:
        converted = convert_names(state_dict, 'mmevit')
        if find_form(state_dict) == 'mmevit' and 'state_dict' in checkpoint:
            return {**checkpoint, 'state_dict': converted}
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, dict) else {}
    if dataset_meta := find_dataset_meta(meta):
        meta['dataset_meta'] = dataset_meta
    return dict(meta=meta, state_dict=converted)


def find_dataset_meta(meta):
    """Find the classes in the metadata of a checkpoint, wherever they may be.

    Args:
        meta (object): The metadata, of mmengine, of mmcv 1.x or of a ``.safetensors`` file.

    Returns:
        dict: As mmengine has it, with ``classes``; empty if there are none.
    """
    meta = meta if isinstance(meta, dict) else {}
    dataset_meta = meta.get('dataset_meta') or {}
    if isinstance(dataset_meta, str):
        with contextlib.suppress(ValueError):
            dataset_meta = json.loads(dataset_meta)
    if not isinstance(dataset_meta, dict):
        dataset_meta = {}
    if 'CLASSES' in meta:  # as mmcv 1.x called them
        dataset_meta = dict(classes=meta['CLASSES']) | dataset_meta
    return dataset_meta


def find_state_dict(checkpoint, path):
    """Find the weights in a checkpoint.

    Args:
        checkpoint (dict): Content of a file.
        path (Path): The file.

    Returns:
        dict[str, Tensor]: The weights, without the prefix of a distributed model.

    Raises:
        CheckpointError: If there are none.
    """
    for key in ('state_dict', 'model'):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    if not checkpoint or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in checkpoint.items()
    ):
        raise CheckpointError(f'{path} holds no weights: expected are tensors by name.')
    return {name.removeprefix('module.'): value for name, value in checkpoint.items()}


def fetch(file_name):
    """Download a released file into PyTorch's cache, unless it is there.

    Args:
        file_name (str): Name of the file.

    Returns:
        Path: Where it is.

    Raises:
        CheckpointError: If it cannot be had, or what came is not whole.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', file_name)
    # The first process of a machine downloads for all of them.
    if get_local_rank() == 0 and not path.is_file():
        download(RELEASE + file_name, path)
    barrier()
    return path


def download(url, path):
    """Download a checkpoint; it appears under its name when it is whole, or not at all.

    Args:
        url (str): Where it is.
        path (Path): Where it is to be.

    Raises:
        CheckpointError: If it cannot be had, or what came is not whole.
    """
    by_hand = f'download {url} by hand and put it at {path}'
    with written_whole(path) as part:
        try:
            with urlopen(Request(url, method='HEAD'), timeout=30) as response:
                size = int(response.headers.get('Content-Length') or 0)
            torch.hub.download_url_to_file(url, str(part))
        except (URLError, OSError) as error:
            reason = getattr(error, 'reason', error)
            raise CheckpointError(f'No connection to the weights ({reason}): {by_hand}.') from error
        if size and part.stat().st_size != size:
            raise CheckpointError(
                f'Only {part.stat().st_size} of {size} bytes came: try again, or {by_hand}.'
            )
        read_checkpoint(part)
