"""Parts of a model that do not fit each other are named before the model is built."""

from pathlib import Path

import pytest
import torch
from editing import CLASSIFIER, DETECTOR, load
from editing import expect_error as expect
from marking import slow_but
from mmengine.registry import MODELS, DefaultScope
from plug_in_table import NECKS, write_config

from mmevit.checks.models import check_model
from mmevit.models import EfficientViT

ATSS = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
CONDINST = 'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py'
DINO = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
PANOPTIC_FPN = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
SOLOV2 = 'mmdet::solov2/solov2_r50_fpn_1x_coco.py'
SPARSE_RCNN = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'
SSD = 'mmdet::ssd/ssd300_coco.py'
TOOD = 'mmdet::tood/tood_r50_fpn_1x_coco.py'
YOLOX = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'
UPERNET = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'


@pytest.fixture
def cfg():
    return load(DETECTOR)


@pytest.fixture(scope='module')
def plug_in(tmp_path_factory):
    """Load a stock config with this backbone."""
    folder = tmp_path_factory.mktemp('configs')

    def load_with_backbone(name):
        path = folder / f'{Path(name).stem}.py'
        return load(str(path if path.exists() else write_config(path, name, NECKS[name])))

    return load_with_backbone


def expect_error(cfg, *parts):
    with expect(*parts):
        check_model(cfg.model, cfg.get('default_scope'))


def set_options(cfg, options):
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        ({'backbone.arch': 'm9'}, ["'m9'", 'm0, m1, m2, m3, m4, m5']),
        ({'backbone.window_sizes': (7, 0, 7)}, ['(7, 0, 7)', 'none below 1']),
        ({'backbone.windows': 7}, ['windows']),
        ({'neck.in_channels': [128, 256]}, ['[128, 256]', '[128, 256, 384]']),
        ({'backbone.arch': 'm0'}, ['[128, 256, 384]', '[64, 128, 192]', "'m0'"]),
        ({'backbone.out_indices': (1, 2)}, ['[128, 256, 384]', '[256, 384]']),
        ({'backbone.out_indices': 2}, ['out_indices=2']),
        ({'backbone.window_sizes': 7}, ['window_sizes=7']),
        ({'backbone.arch': ['m0']}, ["['m0']", 'm0, m1']),
        ({'backbone.norm_cfg': dict(type='NoSuchNorm')}, ['model.backbone cannot be built']),
        ({'neck.in_channels': 128}, ['model.neck', '128']),
        ({'neck.num_outs': 1}, ['model.neck', 'num_outs=1']),
        (
            {'neck': [dict(type='EfficientViTFPN', in_channels=[128, 256], out_channels=8)]},
            ['model.neck', 'num_outs'],
        ),
        (
            {'neck': [dict(type='ChannelMapper', in_channels=[1, 2], out_channels=8)]},
            ['model.neck[0].in_channels is [1, 2]', '[128, 256, 384]'],
        ),
        ({'neck.conv_confg': None}, ['model.neck', 'conv_confg']),
    ],
    ids=lambda value: str(value)[:40],
)
def test_backbone_and_neck_that_do_not_fit_are_reported(cfg, options, parts):
    set_options(cfg, options)
    expect_error(cfg, *parts)


@pytest.mark.parametrize(
    ('name', 'options', 'parts'),
    [
        (ATSS, {'bbox_head.in_channels': 128}, ['model.bbox_head.in_channels is 128', '[256, ']),
        (ATSS, {'neck.num_outs': 4}, ['model.bbox_head', '5 strides', 'returns 4 maps']),
        (TOOD, {'neck.out_channels': 64}, ['model.bbox_head.in_channels is 256', '[64, 64']),
        (RTMDET, {'bbox_head.in_channels': 64}, ['model.bbox_head.in_channels is 64', 'neck[1]']),
        (YOLOX, {'neck.1.in_channels': [1, 2, 3]}, ['model.neck[1].in_channels is [1, 2, 3]']),
        (SSD, {'bbox_head.in_channels': [512, 1024, 512, 256, 256]}, ['bbox_head.in_channels is']),
        (CASCADE, {'rpn_head.in_channels': 64}, ['model.rpn_head.in_channels is 64', '[256, ']),
        (
            CASCADE,
            {'roi_head.bbox_roi_extractor.out_channels': 64},
            ['model.roi_head.bbox_roi_extractor.out_channels is 64', '[256, '],
        ),
        (
            CASCADE,
            {'roi_head.bbox_head.1.in_channels': 64},
            ['model.roi_head.bbox_head[1].in_channels is 64', '[256]'],
        ),
        (
            CASCADE,
            {'roi_head.bbox_head.2.roi_feat_size': 14},
            ['model.roi_head.bbox_head[2]', 'expects 50176 channels', '(1, 12544)'],
        ),
        (
            CASCADE,
            {'roi_head.mask_head.in_channels': 64},
            ['model.roi_head.mask_head.in_channels is 64', 'mask_roi_extractor'],
        ),
        (
            SPARSE_RCNN,
            {'roi_head.bbox_head.3.in_channels': 64},
            ['model.roi_head.bbox_head[3].in_channels is 64'],
        ),
        (PANOPTIC_FPN, {'semantic_head.in_channels': 64}, ['model.semantic_head.in_channels']),
        (CONDINST, {'mask_head.mask_feature_head.in_channels': 64}, ['expects 64 channels']),
        (SOLOV2, {'neck.num_outs': 4}, ['model.mask_head', '5 strides', 'returns 4 maps']),
        (DINO, {'neck.out_channels': 128}, ['embed_dims=256', '[128, 128, 128, 128]']),
        (DINO, {'neck.num_outs': 3}, ['model.num_feature_levels is 4', 'returns 3 maps']),
        (DINO, {'bbox_head.embed_dims': 128}, ['bbox_head.embed_dims is 128', 'embed_dims=256']),
        (
            MASK2FORMER,
            {'panoptic_head.in_channels': [256] * 4},
            ['model.panoptic_head.in_channels is [256, 256, 256, 256]', '[256, 512, 1024, 2048]'],
        ),
        (
            UPERNET,
            {'decode_head.in_channels': [256] * 4},
            ['model.decode_head.in_channels is [256, 256, 256, 256]', '[256, 512, 1024, 2048]'],
        ),
        (UPERNET, {'auxiliary_head.in_channels': 512}, ['model.auxiliary_head.in_channels is 512']),
        (UPERNET, {'auxiliary_head.in_index': 4}, ['in_index is 4', 'returns 4 maps']),
    ],
    ids=lambda value: str(value)[:60].rpartition('/')[2],
)
def test_heads_of_any_library_that_do_not_fit_are_reported(plug_in, name, options, parts):
    cfg = plug_in(name)
    set_options(cfg, options)
    expect_error(cfg, *parts)


def test_each_auxiliary_head_of_a_list_is_compared(plug_in):
    cfg = plug_in(UPERNET)
    head = cfg.model.auxiliary_head
    cfg.model.auxiliary_head = [head, {**head, 'in_index': 1}]
    expect_error(cfg, 'model.auxiliary_head[1].in_channels is 1024', '[256, 512, 1024, 2048]')


@pytest.mark.parametrize(
    ('head', 'name'),
    [
        (dict(type='EfficientViTClsHead', in_channels=384, num_classes=10), 'model.head'),
        (dict(type='LinearClsHead', in_channels=384, num_classes=10), 'model.head'),
        (
            dict(
                type='MultiTaskHead',
                task_heads=dict(a=dict(type='LinearClsHead', in_channels=384, num_classes=10)),
            ),
            'model.head expects 384 channels in head.task_heads.a.fc',
        ),
    ],
    ids=lambda value: value.get('type') if isinstance(value, dict) else '',
)
def test_heads_of_classifiers_that_do_not_fit_are_reported(head, name):
    cfg = load(CLASSIFIER)
    cfg.model.head = head
    expect_error(cfg, name, '384', '192')


# The first of each kind; tests/test_plug_in.py trains all of them.
FAST = {neck: name for name, neck in reversed(NECKS.items())}.values()


@pytest.mark.parametrize('name', slow_but(FAST, NECKS), ids=lambda name: Path(name).stem)
def test_the_models_of_the_table_pass(plug_in, name):
    cfg = plug_in(name)
    check_model(cfg.model, cfg.default_scope)


@pytest.mark.parametrize(
    'name', ['retinanet_evit_m4', 'mask-rcnn_evit_m4', 'evit_m5_in1k', 'semantic-fpn_evit_m4']
)
def test_our_models_pass(name):
    cfg = load(f'configs/{name}.py')
    check_model(cfg.model, cfg.default_scope)


def test_the_check_does_not_change_the_config_or_the_device(cfg):
    before = cfg.model.to_dict()
    check_model(cfg.model, 'mmdet')
    assert cfg.model.to_dict() == before
    with torch.device('cpu'), DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize('kind', ['EfficientViT', 'mmengine.EfficientViT', EfficientViT])
def test_the_backbone_is_found_by_any_spelling_of_its_type(kind):
    with expect('m9'):
        check_model(dict(backbone=dict(type=kind, arch='m9')))


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        'mmpretrain::levit/levit-128s_8xb256_in1k.py',
        'mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py',
    ],
)
def test_models_with_other_backbones_are_not_checked(name):
    check_model(load(name).model)
