"""``evit://`` and ``hf://``: released weights, files of any format and weights on the hub."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import torch
from filelock import FileLock
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from mmevit.models.efficientvit import infer_arch, select_weights
from mmevit.utils.errors import CheckpointError, ConfigError, one_line, warn
from mmevit.utils.files import atomic_write, check_ending
from mmevit.version import __version__

from .hub import download_from_hub
from .matching import check_fit, require_fit
from .names import convert_names, infer_format, strip_wrappers
from .reading import MapLocation, read_checkpoint

RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
RELEASED_FILES = {
    **{f'm{index}': f'efficientvit_m{index}.pth' for index in range(6)},
    'retinanet-m4': 'retinanet_efficientvit_m4_fpn_1x_coco.pth',
    'mask-rcnn-m4': 'mask_rcnn_efficientvit_m4_fpn_1x_coco.pth',
}
# The copies of the classifiers, for when the release cannot be reached.
TIMM_COPIES = {
    f'm{index}': f'hf://timm/efficientvit_m{index}.r224_in1k/model.safetensors'
    for index in range(6)
}
# Keys of the weights in checkpoints, and of their averages. The first that is found is loaded.
WEIGHTS, AVERAGES = ('state_dict', 'model'), ('state_dict_ema', 'model_ema')
# Seconds without a byte from the server after which a download fails.
TIMEOUT = 30


class DownloadError(CheckpointError):
    """A file that could not be downloaded."""


@CheckpointLoader.register_scheme(prefixes=('evit://', 'hf://'))  # pyright: ignore[reportOptionalCall]
def load_for_mmengine(filename: str, map_location: MapLocation = None) -> dict:
    """Load for mmengine, so that a backbone refuses weights that do not fit."""
    return require_fit(load_from_evit(filename, map_location))


load_for_mmengine.__name__ = 'load_from_evit'  # mmengine logs the part after `load_from_`


def load_from_evit(filename: str, map_location: MapLocation = None) -> dict:
    """Load ``evit://NAME``, ``evit://PATH`` or ``hf://OWNER/REPO``.

    Args:
        filename: ``evit://m0`` to ``evit://m5``, ``evit://retinanet-m4`` or
            ``evit://mask-rcnn-m4`` for the released weights, which are downloaded once. Or
            ``evit://`` with the path of a local file of mmevit, mmcv 1.x, timm or the authors, or
            ``hf://OWNER/REPO[/FILE][@REVISION]`` for such a file on the Hugging Face Hub.
        map_location: Device to load the tensors to.

    Returns:
        ``meta``, and ``state_dict`` with keys in mmevit's format. Other content of a checkpoint of
        mmengine is kept.

    Raises:
        CheckpointError: If the file cannot be found, downloaded, read safely, or recognized.
    """
    if filename.startswith('hf://'):
        return read_weights(download_from_hub(filename), map_location)
    name = filename.removeprefix('evit://')
    if name in RELEASED_FILES:
        return read_weights(fetch_release(name), map_location)
    path = Path(name).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f'{filename} is neither a file nor one of the names {", ".join(RELEASED_FILES)}. '
            'Check the path.'
        )
    return read_weights(path, map_location)


def locate(weights: str) -> str:
    """Return an address of weights unchanged, and a file as ``evit://`` and its absolute path."""
    return weights if '://' in weights else f'evit://{Path(weights).expanduser().resolve()}'


def convert_checkpoint(source: str | Path, destination: str | Path, target: str) -> dict:
    """Convert a checkpoint file. The tensors stay bit-exact.

    Args:
        source: ``.pth`` or ``.safetensors``, of any format.
        destination: ``.pth`` or ``.safetensors``, to be written.
        target: ``'mmevit'``, ``'released'`` or ``'timm'``.

    Returns:
        The metadata that was written: ``arch``, ``source``, ``sha256`` of the source,
        ``mmevit_version``, and ``dataset_meta`` if the classes are known.

    Raises:
        CheckpointError: If the source cannot be read or recognized, or has missing or unexpected
            keys.
        UserError: If the destination has another suffix or cannot be written.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser()
    check_ending(destination, ('.pth', '.safetensors'))
    checkpoint = read_weights(source)
    with add_to_errors(source):
        weights = convert_names(checkpoint['state_dict'], target)
    meta: dict = dict(
        arch=infer_arch(select_weights(checkpoint['state_dict'], 'backbone.')) or 'custom',
        source=source.name,
        sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        mmevit_version=__version__,
    )
    if dataset_meta := find_dataset_meta(checkpoint.get('meta')):
        meta['dataset_meta'] = dataset_meta
    with atomic_write(destination) as path:
        if path.suffix == '.safetensors':
            weights = {name: weight.contiguous() for name, weight in weights.items()}
            # The metadata may only be strings.
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
            save_file(weights, path, texts)
        else:
            # `model` as in the released files. timm's own loading finds weights there too.
            key = 'state_dict' if target == 'mmevit' else 'model'
            torch.save({key: weights, 'meta': meta}, path)
    return meta


def read_weights(path: Path, map_location: MapLocation = 'cpu') -> dict:
    """Read a checkpoint of any format; see :func:`load_from_evit`."""
    checkpoint = read_checkpoint(path, map_location)
    with add_to_errors(path):
        state_dict = find_state_dict(checkpoint)
        converted = convert_names(state_dict, 'mmevit')
    meta = checkpoint.get('meta')
    meta = dict(meta) if isinstance(meta, dict) else {}
    if dataset_meta := find_dataset_meta(meta):
        meta['dataset_meta'] = dataset_meta
    if infer_format(state_dict) == 'mmevit' and 'state_dict' in checkpoint:
        kept = {**checkpoint, 'meta': meta} if meta else checkpoint
        return {**kept, 'state_dict': converted}
    return dict(meta=meta, state_dict=converted)


@contextlib.contextmanager
def add_to_errors(path: Path) -> Iterator[None]:
    """Add a path to the messages of checkpoint errors."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error


def find_dataset_meta(meta: object) -> dict:
    """Find the classes in the metadata of mmengine or of mmcv 1.x.

    Returns:
        ``dataset_meta`` as in mmengine, with ``classes``. Empty if there are none.
    """
    meta = meta if isinstance(meta, dict) else {}
    found = meta.get('dataset_meta')
    mmcv_1 = dict(classes=meta['CLASSES']) if 'CLASSES' in meta else {}
    return mmcv_1 | (found if isinstance(found, dict) else {})


def find_state_dict(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Find the weights in the content of a checkpoint file, without the prefixes of wrappers.

    If there are averaged weights, it is logged which ones are used.
    """
    found = [key for key in WEIGHTS + AVERAGES if isinstance(checkpoint.get(key), dict)]
    if set(AVERAGES).intersection(found):
        print_log(f'The checkpoint has {" and ".join(found)}: {found[0]} is loaded.', 'current')
    weights = checkpoint[found[0]] if found else checkpoint
    if not weights or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise CheckpointError('No weights found. Pass a dict of tensors by name.')
    return strip_wrappers(weights)


def fetch_release(name: str) -> Path:
    """Download released weights, or timm's copy if the release cannot be reached."""
    try:
        return fetch(RELEASED_FILES[name])
    except DownloadError as error:
        if name not in TIMM_COPIES or find_spec('huggingface_hub') is None:
            raise
        copy, reason = TIMM_COPIES[name], one_line(error.__cause__ or error)
        try:
            path = download_from_hub(copy)
        except CheckpointError as second:
            raise CheckpointError(f"{error} timm's copy failed too: {second}") from second
        warn(
            f"The authors' release cannot be reached ({reason}). timm's copy of the same weights "
            f'is loaded instead: {copy}'
        )
        return path


def fetch(file_name: str) -> Path:
    """Download a released file into PyTorch's cache, unless it is there.

    One process per machine downloads and the others wait, with and without a process group.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', file_name)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'.{file_name}.lock')):
            if not path.is_file():
                download(RELEASE + file_name, path)
    except OSError as error:
        raise CheckpointError(
            f'The cache {path.parent} cannot be written ({error}). Set TORCH_HOME to a writable '
            'folder.'
        ) from error
    return path


def download(url: str, path: Path) -> None:
    """Download a checkpoint atomically, or raise CheckpointError if it is incomplete or not one."""
    remedy = f'Try again, or download {url} manually and copy it to {path}.'
    print_log(f'Downloading {url} to {path}', 'current')
    with atomic_write(path) as part:
        try:
            with urlopen(url, timeout=TIMEOUT) as response, part.open('wb') as file:
                size = int(response.headers.get('Content-Length') or 0)
                shutil.copyfileobj(response, file, 2**20)
        except (OSError, HTTPException) as error:
            reason = getattr(error, 'reason', error)
            raise DownloadError(f'The download failed ({reason}). {remedy}') from error
        if size and part.stat().st_size != size:
            raise CheckpointError(
                f'Only {part.stat().st_size} of {size} bytes were received. {remedy}'
            )
        read_checkpoint(part)


def load_into(model: nn.Module, path: str) -> dict:
    """Load a checkpoint from a file or URL into a model, and return its content.

    Raises:
        CheckpointError: If it does not have exactly the weights of the model.
    """
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    check_fit(model, checkpoint)
    weights = checkpoint.get('state_dict', checkpoint)
    consume_prefix_in_state_dict_if_present(weights, 'module.')
    model.load_state_dict(weights)
    return checkpoint


def check_checkpoint(path: str | None) -> None:
    """Raise ConfigError if a checkpoint is a local file that is missing."""
    if path and '://' not in path and not os.path.isfile(path):
        raise ConfigError(
            f'The checkpoint {path} is missing. Training saves checkpoints in its work directory.'
        )
