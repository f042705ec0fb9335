"""Find out before a model is built what would end a run hours later, or at once but obscurely."""

import json
import os
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.registry import MODELS

TRY_DIGITS = (
    'to try without data, run tools/prepare_digits.py and use configs/retinanet_evit_m4_digits.py'
)


class ConfigError(ValueError):
    """A config asks for what is not there or does not fit; its message is one sentence."""


def check_config(cfg, splits):
    """Check that devices, data and model are what a config takes them to be.

    Args:
        cfg (Config): A config of any OpenMMLab library.
        splits (Sequence[str]): Which of ``'train'``, ``'val'`` and ``'test'`` the run will use.

    Raises:
        ConfigError: If something is missing or does not fit.

    Example:
        >>> from mmengine.config import Config
        >>> check_config(Config(dict(model=dict(type='RetinaNet'))), splits=['train'])
    """
    check_device(cfg)
    check_model(cfg.model)
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader')
        if dataloader is not None:
            for dataset in find_datasets(dataloader['dataset']):
                check_dataset(dataset, split)


def check_device(cfg):
    """Check that the GPUs that a config asks for are there.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If there are none, or fewer than processes.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    launcher = cfg.get('launcher', 'none')
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if get_device() == 'cpu':
        if visible not in ('', '-1'):
            raise ConfigError(
                f'CUDA_VISIBLE_DEVICES={visible} asks for a GPU, but PyTorch sees none: check the '
                'driver and that PyTorch was built for CUDA, or unset it to run on the CPU.'
            )
        if launcher != 'none' and backend == 'nccl':
            raise ConfigError(
                f'--launcher {launcher} with the nccl backend asks for GPUs, but PyTorch sees none:'
                ' run without a launcher, or on CPUs with --cfg-options '
                'env_cfg.dist_cfg.backend=gloo.'
            )
        if cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper':
            raise ConfigError(
                'Mixed precision (--amp or AmpOptimWrapper) asks for a GPU, but PyTorch sees none: '
                'leave it out to run on the CPU.'
            )
    elif launcher == 'pytorch' and get_device() == 'cuda':
        rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if rank >= count:
            raise ConfigError(
                f'Process {rank} of this machine asks for GPU {rank}, but PyTorch sees {count}: '
                'start no more processes than there are GPUs.'
            )


def check_model(model):
    """Check the arguments of an EfficientViT backbone and that the neck fits what it gives.

    Args:
        model (dict): Config of the model.

    Raises:
        ConfigError: If the backbone cannot be built or the neck takes other maps.
    """
    backbone = model.get('backbone') or {}
    if backbone.get('type') not in ('EfficientViT', 'mmevit.EfficientViT'):
        return
    try:
        # On the meta device there is no memory to fill: this takes the time of reading it.
        with torch.device('meta'):
            out_channels = list(MODELS.build(backbone).out_channels)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'model.backbone: {error}') from error
    neck = model.get('neck') or {}
    in_channels = neck.get('in_channels') if isinstance(neck, dict) else None
    if isinstance(in_channels, (list, tuple)) and list(in_channels) != out_channels:
        raise ConfigError(
            f'model.neck.in_channels is {list(in_channels)}, but the backbone, '
            f'arch={backbone.get("arch", "m4")!r}, gives maps of {out_channels} channels: make '
            'them, or model.backbone.out_indices, agree.'
        )


def find_datasets(dataset):
    """Yield the configs of the data sets that a wrapper such as ``RepeatDataset`` stands around.

    Args:
        dataset (dict): Config of a data set or of a wrapper.

    Yields:
        dict: Config of a data set that reads files.

    Example:
        >>> list(find_datasets(dict(type='RepeatDataset', dataset=dict(type='CocoDataset'))))
        [{'type': 'CocoDataset'}]
    """
    if 'dataset' in dataset:
        yield from find_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from find_datasets(part)
    else:
        yield dataset


def check_dataset(dataset, split):
    """Check that the files of a data set on a local disk are there and that COCO files parse.

    Args:
        dataset (dict): Config of a data set.
        split (str): What it is for, to name it by.

    Raises:
        ConfigError: If a file is missing or is not what its name says.
    """
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    if dataset.get('backend_args') or '://' in root + ann_file:
        return
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img=prefixes)
    paths = [os.path.join(root, path) for path in (ann_file, *prefixes.values()) if path]
    for path in paths:
        if not os.path.exists(path):
            raise ConfigError(
                f'The {split} data is not whole, {path} is missing: expected are '
                f'{" and ".join(paths)}; {TRY_DIGITS}.'
            )
    if ann_file.endswith('.json'):
        folder = Path(root, prefixes.get('img', ''))
        check_coco(Path(root, ann_file), folder)


def check_coco(ann_file, folder):
    """Check that a COCO annotation file parses and that the images that it names are there.

    Args:
        ann_file (Path): The annotation file. One in mmengine's own format is left alone.
        folder (Path): Folder that the names of the images start from.

    Raises:
        ConfigError: If it does not parse, lacks a part, or names images that are not there.
    """
    try:
        content = json.loads(ann_file.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f'{ann_file} is not a whole JSON file ({error}): copy or download it again; '
            f'{TRY_DIGITS}.'
        ) from error
    if isinstance(content, dict) and 'data_list' in content:
        return
    parts = ('images', 'annotations', 'categories')
    absent = [part for part in parts if not isinstance(content, dict) or part not in content]
    if absent:
        raise ConfigError(
            f"{ann_file} has no {', '.join(absent)}: expected is COCO's layout, an object with "
            f'the lists {", ".join(parts)}; {TRY_DIGITS}.'
        )
    names_by_folder = defaultdict(set)
    for image in content['images']:
        path = folder / image['file_name']
        names_by_folder[path.parent].add(path.name)
    missing = []
    for parent, names in names_by_folder.items():
        present = set(os.listdir(parent)) if parent.is_dir() else set()
        missing += [str(parent / name) for name in sorted(names - present)]
    if missing:
        raise ConfigError(
            f'{ann_file} names {len(missing)} of {len(content["images"])} images that are not '
            f'there, such as {missing[0]}: put the images into {folder}, or mend data_prefix; '
            f'{TRY_DIGITS}.'
        )
