"""Checkpoints as others make them, from timm's models and by rules apart from mmevit's own."""

import functools
import re

import timm
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope

from mmevit.models import EfficientViT


def randomise(model):
    """Leave nothing at the value that hides it, such as a zero norm weight."""
    for name, value in model.state_dict().items():
        if name.endswith(('bn.weight', 'norm.weight', 'running_var')):
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif value.is_floating_point() and value.ndim <= 2:
            torch.nn.init.normal_(value, std=0.3)
    return model.eval()


@functools.cache
def make_timm(arch):
    """timm's classifier with random weights, an independent implementation; copy to change it."""
    torch.manual_seed(int(arch[1]))
    return randomise(timm.create_model(f'efficientvit_{arch}'))


def as_released(model):
    """Spell a timm model's weights as the released files do, by rules of this test's own."""
    released = {}
    for name, value in model.state_dict().items():
        name = re.sub(r'^patch_embed\.conv(\d)', lambda m: f'patch_embed.{2 * int(m[1]) - 2}', name)
        name = re.sub(r'^stages\.0\.blocks\.', 'blocks1.', name)
        name = re.sub(
            r'^stages\.(\d)\.blocks\.(\d+)',
            lambda m: f'blocks{int(m[1]) + 1}.{int(m[2]) + 3}',
            name,
        )
        for part, position in (('res1', 0), ('patchmerge', 1), ('res2', 2)):
            name = re.sub(
                rf'^stages\.(\d)\.downsample\.{part}',
                lambda m, position=position: f'blocks{int(m[1]) + 1}.{position}',
                name,
            )
        name = name.replace('.conv.', '.c.').replace('head.linear', 'head.l')
        released[name] = value
        if name.endswith('attention_biases'):
            size = round(value.shape[1] ** 0.5)
            points = [(row, column) for row in range(size) for column in range(size)]
            released[name.replace('attention_biases', 'attention_bias_idxs')] = torch.tensor(
                [[abs(a - c) * size + abs(b - d) for c, d in points] for a, b in points]
            )
    return released


def make_classifier(arch, windows=(7, 7, 4), num_classes=1000):
    """Build our classifier as mmpretrain does."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(classifier_config(arch, windows, num_classes)).eval()


def classifier_config(arch, windows=(7, 7, 4), num_classes=1000):
    """The model of a classifier at 224 pixels."""
    channels = EfficientViT.arch_zoo[arch].embed_dims[-1]
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='EfficientViT', arch=arch, window_sizes=windows, out_indices=(2,)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='EfficientViTClsHead', num_classes=num_classes, in_channels=channels),
    )


def detector_config(kind):
    """The model of RetinaNet as shipped, or Mask R-CNN with the neck of the paper, but small."""
    cfg = Config.fromfile('configs/retinanet_evit_m4.py').model
    use_small_backbone(cfg)
    if kind == 'mask-rcnn':
        backbone, neck = cfg.backbone, cfg.neck
        cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
        neck.update(num_outs=5, num_upsample_levels=2)
        del neck['add_extra_convs']
        cfg.backbone, cfg.neck = backbone, neck
        cfg.roi_head.bbox_head.fc_out_channels = 8
    return cfg


def use_small_backbone(cfg):
    """Change a detector's m4 to an m0 of random weights."""
    cfg.backbone.update(arch='m0', init_cfg=None)
    cfg.neck.in_channels = EfficientViT.arch_zoo['m0'].embed_dims


def detector_as_released(detector, classifier):
    """Spell a detector's weights, but the backbone of a timm classifier, as released files do."""
    weights = {
        f'backbone.{name}': value
        for name, value in as_released(classifier).items()
        if not name.startswith('head')
    }
    num_levels = len(detector.neck.fpn_convs[0].upsamples)
    for name, value in detector.state_dict().items():
        if not name.startswith('backbone.'):
            name = name.replace('fpn_convs.0.upsamples', 'extra_trans_convs')
            name = re.sub(
                r'fpn_convs\.0\.finer_convs\.(\d)',
                lambda m: f'extra_fpn_convs.{num_levels - 1 - int(m[1])}',
                name,
            )
            weights[name] = value
    return weights
