"""Check that the parts of a model fit each other and the data."""

import logging

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS

from mmevit.errors import ConfigError, shorten
from mmevit.utils.configs import as_list, find_datasets, type_name

# How mmdet and mmsegmentation write what the released weights were trained on.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


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
