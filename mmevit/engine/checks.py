"""Find out before a model is built what would end a run hours later, or at once but obscurely."""

import json
import logging
import os
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS

from mmevit.datasets.faults import find_coco_faults
from mmevit.errors import ConfigError, shorten, told_as_config_errors

DIGITS_CONFIGS = dict(
    mmdet='configs/retinanet_evit_m4_digits.py',
    mmpretrain='configs/evit_m0_digits.py',
    mmseg='configs/semantic-fpn_evit_m4_digits.py',
)
# How mmdet and mmsegmentation write what the released weights were trained on.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# What mmdet's CocoDataset reads of each entry.
COCO_FIELDS = dict(
    images={'id', 'file_name', 'height', 'width'},
    annotations={'id', 'image_id', 'category_id', 'bbox', 'area'},
    categories={'id', 'name'},
)
SELF_DOWNLOADING = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')


@told_as_config_errors()
def check_config(cfg, splits):
    """Check that devices, model and data are what a config takes them to be.

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
    if 'train' in splits:
        check_mixed_precision(cfg)
        check_schedule(cfg)
    check_model(cfg.model)
    check_number_of_classes(cfg)
    # The first process of a machine reads its files for all of them.
    if int(os.environ.get('LOCAL_RANK', 0)) > 0:
        return
    if 'train' in splits:
        warn_of_random_statistics(cfg)
        warn_of_other_pixels(cfg)
    for split in splits:
        check_data(cfg, split)


def check_device(cfg):
    """Check that the GPUs and the processes that a config asks for are there.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If there are none, or fewer than processes.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch is for processes that torchrun has started: use '
            'tools/dist_train.sh or tools/dist_test.sh, or leave it out to run in one process.'
        )
    if get_device() == 'cpu':
        check_cpu(cfg, launcher)
    elif launcher == 'pytorch' and get_device() == 'cuda':
        rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if rank >= count:
            raise ConfigError(
                f'Process {rank} of this machine asks for GPU {rank}, but PyTorch sees {count}: '
                'start no more processes than there are GPUs.'
            )


def check_cpu(cfg, launcher):
    """Check that nothing asks for a GPU, where there is none.

    Args:
        cfg (Config): The config.
        launcher (str): What started the processes.

    Raises:
        ConfigError: If something does.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '')
    if visible not in ('', '-1'):
        raise ConfigError(
            f'CUDA_VISIBLE_DEVICES={visible} asks for a GPU, but PyTorch sees none: check the '
            'driver and that PyTorch was built for CUDA, or unset it to run on the CPU.'
        )
    if launcher in ('slurm', 'mpi'):
        raise ConfigError(
            f'--launcher {launcher} asks for GPUs, but PyTorch sees none: run without a launcher, '
            'or on several CPU processes with tools/dist_train.sh.'
        )


def check_mixed_precision(cfg):
    """Check that a config that trains in mixed precision on a CPU does so in bfloat16.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If it names another type, such as float16, which needs a GPU, or the model is
            a detector in two stages, for which mmcv has only operators in float32.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    dtype = str(wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    mixed = ('AmpOptimWrapper', 'Bfloat16OptimWrapper')
    if get_device() != 'cpu' or not type_name(wrapper).endswith(mixed):
        return
    if cfg.model.get('roi_head'):
        raise ConfigError(
            f'{type_name(cfg.model)} proposes regions, for which mmcv has no operators in bfloat16 '
            'on a CPU: leave out mixed precision (--amp), or train on a GPU.'
        )
    if dtype != 'bfloat16':
        raise ConfigError(
            f'optim_wrapper.dtype is {dtype}, but PyTorch sees no GPU, and on a CPU mixed '
            'precision is in bfloat16: give --cfg-options optim_wrapper.dtype=bfloat16.'
        )


def check_schedule(cfg):
    """Check that training lasts, and long enough for each scheduler to begin.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If it does not, or one begins after the end.
    """
    train_cfg = cfg.get('train_cfg') or {}
    for length in ('max_epochs', 'max_iters', 'val_interval'):
        value = train_cfg.get(length, 1)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(
                f'train_cfg.{length} is {value!r}, but must be a whole number above 0.'
            )
    max_epochs = train_cfg.get('max_epochs')
    for scheduler in as_list(cfg.get('param_scheduler') or []):
        begin = scheduler.get('begin', 0)
        if max_epochs and scheduler.get('by_epoch', True) and begin >= max_epochs:
            raise ConfigError(
                f'{type_name(scheduler)} in param_scheduler begins after {begin} epochs, but '
                f'train_cfg.max_epochs is {max_epochs}: train longer, or for a short trial give '
                '--cfg-options param_scheduler=None.'
            )


def type_name(cfg):
    """Name of the class that a config builds, without the scope of its library.

    Args:
        cfg (dict): A config; its ``type`` is a string or, in configs in Python style, a class.

    Returns:
        str: The name, empty if there is no type.

    Example:
        >>> type_name(dict(type='mmdet.CocoDataset'))
        'CocoDataset'
    """
    kind = cfg.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def as_list(cfg):
    """Make a list of what a config may hold one or several of, such as evaluators.

    Args:
        cfg (dict | Sequence[dict]): The one, or several.

    Returns:
        Sequence[dict]: The several.

    Example:
        >>> as_list(dict(type='CocoMetric'))
        [{'type': 'CocoMetric'}]
    """
    return [cfg] if isinstance(cfg, dict) else cfg


def check_model(model):
    """Check the arguments of an EfficientViT backbone, and that neck and head fit what it gives.

    Args:
        model (dict): Config of the model.

    Raises:
        ConfigError: If the backbone or its neck cannot be built, or neck or head take other maps.
    """
    backbone, neck, head = (model.get(part) or {} for part in ('backbone', 'neck', 'head'))
    if type_name(backbone) != 'EfficientViT':
        return
    arch = backbone.get('arch', 'm4')
    out_channels = list(build_without_memory(backbone, 'backbone').out_channels)
    if type_name(head) == 'EfficientViTClsHead' and head.get('in_channels') != out_channels[-1]:
        raise ConfigError(
            f'model.head.in_channels is {head.get("in_channels")}, but the backbone, '
            f'arch={arch!r}, gives {out_channels[-1]} channels: make them agree.'
        )
    neck = as_list(neck)[0]
    if type_name(neck) == 'EfficientViTFPN':
        build_without_memory(neck, 'neck')
    in_channels = neck.get('in_channels')
    if isinstance(in_channels, (list, tuple)) and list(in_channels) != out_channels:
        raise ConfigError(
            f'model.neck.in_channels is {list(in_channels)}, but the backbone, arch={arch!r}, '
            f'gives maps of {out_channels} channels: make them, or model.backbone.out_indices, '
            'agree.'
        )


def check_number_of_classes(cfg):
    """Check that the heads have the classes that the data set names.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If one has more or fewer.
    """
    dataloader = cfg.get('train_dataloader') or {}
    for dataset in find_datasets(dataloader.get('dataset', {})):
        classes = (dataset.get('metainfo') or {}).get('classes')
        if not isinstance(classes, (list, tuple)):
            continue
        for name, head in find_heads(cfg.model):
            # EfficientViTClsHead has those of ImageNet unless it is told.
            default = 1000 if type_name(head) == 'EfficientViTClsHead' else len(classes)
            num_classes = head.get('num_classes', default)
            if num_classes != len(classes):
                raise ConfigError(
                    f'{name}.num_classes is {num_classes}, but the data set has {len(classes)} '
                    f'classes, {shorten(classes)}: make them agree.'
                )


def find_heads(model, name='model'):
    """Yield the heads of a model that tell classes apart.

    Args:
        model (dict): Config of a classifier or a detector, or of a part of one.
        name (str): Its name.

    Yields:
        tuple[str, dict]: Name and config of a head.

    Example:
        >>> list(find_heads(dict(roi_head=dict(bbox_head=dict(num_classes=80)))))
        [('model.roi_head.bbox_head', {'num_classes': 80})]
    """
    for key in ('head', 'bbox_head', 'mask_head'):
        for head in as_list(model.get(key) or []):
            # Masks of any class alike need no number of them.
            if not head.get('class_agnostic'):
                yield f'{name}.{key}', head
    if model.get('roi_head'):
        yield from find_heads(model['roi_head'], f'{name}.roi_head')


def build_without_memory(cfg, name):
    """Build a part of a model on the meta device, in the time that it takes to read its config.

    Args:
        cfg (dict): Config of one of mmevit's modules.
        name (str): Its name in the model.

    Returns:
        nn.Module: The module, without values.

    Raises:
        ConfigError: If it cannot be built.
    """
    try:
        with torch.device('meta'):
            return MODELS.build({**cfg, 'type': type_name(cfg)})
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split()) or 'its arguments contradict each other.'
        raise ConfigError(f'model.{name} cannot be built: {reason}') from error


def warn_of_random_statistics(cfg):
    """Warn where batch norm is frozen, but nothing is loaded that would have trained it.

    Args:
        cfg (Config): The config.
    """
    backbone = cfg.model.get('backbone') or {}
    is_loaded = any(cfg.get(key) for key in ('load_from', 'resume')) or any(
        part.get('init_cfg') for part in (cfg.model, backbone)
    )
    if type_name(backbone) == 'EfficientViT' and backbone.get('norm_eval') and not is_loaded:
        print_log(
            'model.backbone.norm_eval freezes batch norm, but the backbone starts from random '
            'weights: name trained ones in model.backbone.init_cfg, or set norm_eval=False.',
            logger='current',
            level=logging.WARNING,
        )


def warn_of_other_pixels(cfg):
    """Warn where trained weights would see other pixels than those that they were trained on.

    Args:
        cfg (Config): The config; stock ones of FCOS, SSD, YOLOX and RTMDet are such.
    """
    backbone, preprocessor = (
        cfg.model.get(name) or {} for name in ('backbone', 'data_preprocessor')
    )
    is_loaded = type_name(backbone) == 'EfficientViT' and backbone.get('init_cfg')
    given = {name: preprocessor.get(name) for name in IMAGENET_PIXELS}
    if is_loaded and preprocessor and given != IMAGENET_PIXELS:
        print_log(
            f'The weights in model.backbone.init_cfg are for {IMAGENET_PIXELS}, but '
            f'model.data_preprocessor has {given}: write those there if they are of ImageNet.',
            logger='current',
            level=logging.WARNING,
        )


def check_data(cfg, split):
    """Check the files that the data sets and the evaluators of one split need.

    Args:
        cfg (Config): The config.
        split (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        ConfigError: If something is missing or does not fit.
    """
    dataloader = cfg.get(f'{split}_dataloader')
    if dataloader is None:
        return
    try:
        for dataset in find_datasets(dataloader['dataset']):
            check_dataset(dataset, split)
        for evaluator in as_list(cfg.get(f'{split}_evaluator') or []):
            check_evaluator(evaluator, split)
    except ConfigError as error:
        digits_config = DIGITS_CONFIGS.get(cfg.get('default_scope'), DIGITS_CONFIGS['mmdet'])
        raise ConfigError(
            f'{error}; to try without data, run tools/prepare_digits.py and use {digits_config}.'
        ) from error


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
        split (str): What it is for.

    Raises:
        ConfigError: If a file is missing or is not what its name says.
    """
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    is_remote = dataset.get('backend_args') or '://' in root + ann_file
    is_downloaded = type_name(dataset) in SELF_DOWNLOADING and dataset.get('download', True)
    if is_remote or is_downloaded:
        return
    classes = (dataset.get('metainfo') or {}).get('classes')
    # mmengine only warns, and takes each letter for a class.
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ConfigError(
            f'metainfo.classes of the {split} data is {classes!r}, which is no file here: put it '
            "there, or write a tuple such as ('cat',) for a single class"
        )
    prefixes = dataset.get('data_prefix') or {}
    if isinstance(prefixes, str):
        prefixes = dict(img=prefixes)
    parts = [part for part in (ann_file, *prefixes.values()) if part] or fixed_layout(dataset, root)
    paths = [Path(root, part) for part in parts or ['']]
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f'The {split} data is not whole, {path} is missing: what is expected is '
                f'{" and ".join(map(str, paths))}'
            )
    if type_name(dataset) == 'CocoDataset' and ann_file:
        path = Path(root, ann_file)
        content = read_coco(path, split)
        check_coco(dataset, content, path)
        check_images(content, path, Path(root, prefixes.get('img', '')))


def fixed_layout(dataset, root):
    """List what mmpretrain's data sets of a fixed layout read.

    Args:
        dataset (dict): Config of a data set.
        root (str): Its folder.

    Returns:
        list[str]: Files and folders in ``root``; empty if the data set is another one.

    Example:
        >>> fixed_layout(dict(type='ImageNet', split='val'), 'data/imagenet')
        ['val']
    """
    split = dataset.get('split')
    cars = ['car_ims', 'cars_annos.mat']
    if not Path(root, cars[1]).exists():
        part, labels = ('test', '_withlabels') if split == 'test' else ('train', '')
        cars = [f'cars_{part}', f'devkit/cars_{part}_annos{labels}.mat']
    layouts = dict(
        ImageNet=[split] if split else [],
        StanfordCars=cars,
        Flowers102=['jpg', 'imagelabels.mat', 'setid.mat'],
        OxfordIIITPet=['images', f'annotations/{split or "trainval"}.txt'],
    )
    return layouts.get(type_name(dataset), [])


def check_evaluator(evaluator, split):
    """Check that an evaluator's own annotation file, if it has one, is there.

    Args:
        evaluator (dict): Config of a metric.
        split (str): What it is for.

    Raises:
        ConfigError: If it is missing.
    """
    ann_file = evaluator.get('ann_file') or ''
    is_local = ann_file and '://' not in ann_file and not evaluator.get('backend_args')
    if is_local and not os.path.exists(ann_file):
        raise ConfigError(f'{split}_evaluator.ann_file, {ann_file}, is missing')


def read_coco(ann_file, split):
    """Read a COCO annotation file and check its layout.

    Args:
        ann_file (Path): The annotation file.
        split (str): What it is for: a test set needs no annotations.

    Returns:
        dict: Its content.

    Raises:
        ConfigError: If it does not parse, or lacks a part or a field.
    """
    try:
        content = json.loads(ann_file.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f'{ann_file} is not a whole JSON file ({error}): copy or download it again'
        ) from error
    parts = [part for part in COCO_FIELDS if part != 'annotations' or split != 'test']
    for part in parts:
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise ConfigError(
                f"{ann_file} has no {part}: expected is COCO's layout, an object with the lists "
                f'{", ".join(parts)}'
            )
        fields = COCO_FIELDS[part]
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise ConfigError(
                    f"{ann_file} is not in COCO's layout: {part}[{index}] needs "
                    f'{", ".join(sorted(fields))}'
                )
    return content


def check_coco(dataset, content, ann_file):
    """Check that mmdet reads from an annotation file what it says, and warn of what it leaves out.

    Args:
        dataset (dict): Config of a ``CocoDataset``.
        content (dict): What is in the annotation file.
        ann_file (Path): The annotation file.

    Raises:
        ConfigError: If nothing can be trained on it, or classes would be mistaken.
    """
    classes = list_classes(dataset)
    if classes is None:
        return
    names = [category['name'] for category in content['categories']]
    if not set(classes) & set(names):
        raise ConfigError(
            f'{ann_file} has the categories {shorten(names)}, but the data set has the classes '
            f'{shorten(classes)}, so that nothing would be learnt: name them in '
            "dataset.metainfo.classes, and their number in the head's num_classes"
        )
    faults = find_coco_faults(content, classes)
    if kinds := faults.of('fatal'):
        raise ConfigError(
            f'{ann_file} cannot be trained on or evaluated: {faults.describe(kinds)}; '
            'tools/check_dataset.py CONFIG lists all that is wrong'
        )
    if kinds := faults.of('fault'):
        print_log(
            f'{ann_file} has faults, of which tools/check_dataset.py CONFIG tells more: '
            f'{faults.describe(kinds)}.',
            logger='current',
            level=logging.WARNING,
        )


def list_classes(dataset):
    """List the classes of a COCO data set.

    Args:
        dataset (dict): Config of a ``CocoDataset``.

    Returns:
        Sequence[str] | None: Their names, or None where the config names a file that lists them.
    """
    from mmdet.datasets import CocoDataset

    classes = (CocoDataset.METAINFO | (dataset.get('metainfo') or {}))['classes']
    return None if isinstance(classes, str) else classes


def check_images(content, ann_file, folder):
    """Check that the images that an annotation file names are there.

    Args:
        content (dict): What is in the annotation file.
        ann_file (Path): The annotation file.
        folder (Path): Folder that the names of the images start from.

    Raises:
        ConfigError: If one is not.
    """
    names_by_folder = defaultdict(set)
    for image in content['images']:
        path = folder / image['file_name']
        names_by_folder[path.parent].add(path.name)
    missing = []
    for parent, names in names_by_folder.items():
        entries = os.scandir(parent) if parent.is_dir() else ()
        # A pipe in the place of an image would be waited for.
        present = {entry.name for entry in entries if os.path.isfile(entry)}
        missing += [str(parent / name) for name in sorted(names - present)]
    if missing:
        raise ConfigError(
            f'{ann_file} names {len(missing)} of {len(content["images"])} images that are not '
            f'there, such as {missing[0]}: put the images into {folder}, or mend data_prefix'
        )
