"""Models in folders and on the Hugging Face Hub: weights, config and model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from safetensors.torch import save_file
from torch import nn

from mmevit.checkpoint.hub import download_from_hub, explain_hub_errors, import_hub
from mmevit.checkpoint.loader import find_dataset_meta, load_into
from mmevit.runtime.sessions import open_exported
from mmevit.utils.configs import build_model, read_config
from mmevit.utils.errors import ConfigError, shorten
from mmevit.utils.files import atomic_write, find_pretrained

# The hub's name for each task of a library and of an exported file.
TASKS = {
    'mmpretrain': 'image-classification',
    'mmdet': 'object-detection',
    'mmseg': 'image-segmentation',
    'classification': 'image-classification',
    'detection': 'object-detection',
    'instance-segmentation': 'image-segmentation',
    'semantic-segmentation': 'image-segmentation',
    'panoptic-segmentation': 'image-segmentation',
}
LOADING = """from mmevit.apis import from_pretrained

model = from_pretrained('{repo}')"""
PREDICTING = """from huggingface_hub import hf_hub_download
from mmevit.runtime import Predictor

predict = Predictor(hf_hub_download('{repo}', '{file}'))"""


def from_pretrained(source: str | Path, device: str = 'cpu') -> nn.Module:
    """Build a model that :func:`save_pretrained` or :func:`push_to_hub` has saved.

    The inferencers of its library accept it. Its config can name any function as ``type``, which
    is then called: use only models from sources that you trust.

    Args:
        source: ``OWNER/REPO[@REVISION]`` on the Hugging Face Hub, or a folder.
        device: Device of the model.

    Returns:
        The model in evaluation mode, with its config as ``cfg`` and its classes in
        ``dataset_meta``.

    Raises:
        ConfigError: If the config is missing or not valid.
        CheckpointError: If the weights cannot be found or do not fit the config.
    """
    weights = find_pretrained(source)
    cfg = read_config(find_config(weights), None, needs=['model'])
    model: Any = build_model(cfg)
    checkpoint = load_into(model, weights)
    # mmpretrain reads the names with an underscore.
    model.cfg = model._config = cfg
    model.dataset_meta = model._dataset_meta = find_dataset_meta(checkpoint.get('meta'))
    return model.to(device).eval()


def find_config(weights: str) -> Path:
    """Return the path of the config next to weights, from the hub if they are there."""
    if weights.startswith('hf://'):
        repo, at, revision = weights.partition('@')
        return download_from_hub(f'{repo}/config.json{at}{revision}')
    return Path(weights.removeprefix('evit://')).with_name('config.json')


def save_pretrained(
    model: nn.Module | str | Path,
    folder: str | Path,
    metrics: Mapping[str, float] = {},
    cfg: Config | None = None,
    license: str = 'apache-2.0',
    repo: str | None = None,
) -> None:
    """Save a model with a model card (``README.md``) in a folder.

    Args:
        model: A classifier, detector or segmentor, saved as ``model.safetensors`` and
            ``config.json``; or the path of an exported file that :mod:`mmevit.runtime` supports.
        folder: The folder, which is created if it does not exist.
        metrics: Results by their names, for the card.
        cfg: Config of the model. Default: the one that it was built from by
            :func:`from_pretrained`, ``mmpretrain.get_model`` or ``mmdet.apis.init_detector``.
        license: License of the weights, by its name on the hub.
        repo: ``OWNER/REPO`` in the code of the card. Default: the folder.

    Raises:
        ConfigError: If the config is not known, or the file is not an exported file.
        CheckpointError: If huggingface_hub is not installed.
    """
    hub = import_hub('A model card')
    folder, repo = Path(folder), repo or str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, nn.Module):
        task, tags, text = save_model(model, folder, cfg)
        code = LOADING.format(repo=repo)
    else:
        task, tags, text = copy_exported(Path(model), folder)
        code = PREDICTING.format(repo=repo, file=Path(model).name)
    data = hub.ModelCardData(
        library_name='mmevit',
        pipeline_tag=task,
        license=license,
        tags=['efficientvit', *tags],
        metrics=list(metrics) or None,
    )
    rows = [f'| {name} | {value} |' for name, value in metrics.items()]
    table = ['| metric | value |', '|---|---|', *rows, ''] if rows else []
    title = f'# {repo.rpartition("/")[2]}'
    code = ['```python', code, '```', '']
    lines = ['---', data.to_yaml(), '---', '', title, '', text, '', *table, *code]
    (folder / 'README.md').write_text('\n'.join(lines), encoding='utf-8')


def push_to_hub(
    model: nn.Module | str | Path, repo: str, private: bool | None = None, **options: Any
) -> str:
    """Upload what :func:`save_pretrained` saves to the Hugging Face Hub.

    Args:
        model: A model or an exported file.
        repo: ``OWNER/REPO``, which is created if it does not exist.
        private: Whether a new repository is private. Default: that of the owner.
        **options: ``metrics``, ``cfg`` and ``license`` of :func:`save_pretrained`.

    Returns:
        The URL of the commit.

    Raises:
        CheckpointError: If huggingface_hub is not installed, or the upload failed.
    """
    hub = import_hub(f'hf://{repo}').HfApi()
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo=repo, **options)
        with explain_hub_errors(f'hf://{repo}'):
            hub.create_repo(repo, private=private, exist_ok=True)
            return hub.upload_folder(repo_id=repo, folder_path=folder).commit_url


def save_model(model: Any, folder: Path, cfg: Config | None) -> tuple[str | None, list[str], str]:
    """Save weights and config; return task, tags and text of the card."""
    cfg = cfg or getattr(model, 'cfg', None) or getattr(model, '_config', None)
    if cfg is None:
        raise ConfigError(f'The config of the {type(model).__name__} is not known. Pass cfg.')
    meta = getattr(model, 'dataset_meta', None) or getattr(model, '_dataset_meta', None) or {}
    classes = list(meta.get('classes') or [])
    # Cloned, since safetensors refuses tensors that share memory.
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }
    info = dict(dataset_meta=json.dumps(dict(classes=classes))) if classes else {}
    with atomic_write(folder / 'model.safetensors') as file:
        save_file(weights, file, info)
    with atomic_write(folder / 'config.json') as file:
        cfg.dump(file)
    library = cfg.get('default_scope') or 'mmengine'
    arch = cfg.model.get('backbone', {}).get('arch')
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    text = describe(f'{type(model).__name__} of {library}, {count:.2f} M parameters', arch, classes)
    task = 'image-segmentation' if getattr(model, 'with_mask', False) else TASKS.get(library)
    return task, [library], f'{text} The complete config is in `config.json`.'


def copy_exported(path: Path, folder: Path) -> tuple[str, list[str], str]:
    """Copy an exported file and its weights; return task, tags and text of the card."""
    metadata, _ = open_exported(path, num_threads=1)
    weights = [path.with_suffix('.bin')] if path.suffix in ('.xml', '.param') else []
    for source in (path, *weights):
        if source.resolve() != (folder / source.name).resolve():
            with atomic_write(folder / source.name) as file:
                shutil.copy(source, file)
    origin = f' of {metadata["config"]}' if metadata.get('config') else ''
    what = f'{metadata["model"]}{origin}, exported as `{path.name}` by mmevit {metadata["version"]}'
    text = describe(what, None, metadata.get('classes') or [])
    return TASKS[metadata['task']], [path.suffix[1:]], text


def describe(what: str, arch: Any, classes: list[str]) -> str:
    """Return the sentences of a card on a model and its classes."""
    backbone = f'-{arch.upper()}' if isinstance(arch, str) else ''
    text = f'{what}, with the backbone EfficientViT{backbone} (CVPR 2023).'
    return f'{text} {len(classes)} classes: {shorten(classes)}.' if classes else text
