import ast
import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmevit.checks.models import check_model

WIDTHS = dict(
    m0=[64, 128, 192],
    m1=[128, 144, 192],
    m2=[128, 192, 224],
    m3=[128, 240, 320],
    m4=[128, 256, 384],
    m5=[192, 288, 384],
)
FAMILIES = ('retinanet', 'mask-rcnn')


def load(name):
    register_all_modules()
    return Config.fromfile(f'configs/{name}.py')


# What configs of mmdet, mmpretrain and mmsegmentation set too.
KEYS = re.compile(
    '_base_|auto_scale_lr|custom_(hooks|imports)|data_(preprocessor|root)|dataset_type'
    '|default_hooks|log_processor|metainfo|model|norm_cfg|optim_wrapper|param_scheduler|sync_bn'
    '|(train|val|test)_(cfg|dataloader|evaluator|pipeline)|tta_(model|pipeline)'
)


def test_configs_set_no_helper_variables():
    for path in Path('configs').rglob('*.py'):
        lines = ast.parse(path.read_text()).body
        names = [ast.unparse(target) for line in lines for target in line.targets]
        assert all(map(KEYS.fullmatch, names)), (path, names)


def test_every_detector_is_tested():
    found = {path.stem for path in Path('configs').glob('*.py')}
    detectors = {name for name in found if not name.startswith(('evit_', 'semantic-fpn_'))}
    names = (*WIDTHS, 'm4_digits')
    assert detectors == {f'{family}_evit_{name}' for family in FAMILIES for name in names}


@pytest.mark.parametrize('name', ['retinanet_evit_m0', 'retinanet_evit_m4_digits'])
def test_detector_runs_in_loss_predict_and_tensor_mode(name):
    cfg = load(name)
    cfg.model.backbone.init_cfg = None  # the released weights are not here
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    num_classes = cfg.model.bbox_head.num_classes
    packed = demo_mm_inputs(2, [[3, 128, 192], [3, 125, 130]], num_classes=num_classes)

    data = detector.data_preprocessor(packed, training=True)
    assert data['inputs'].shape == (2, 3, 128, 192)
    detector.train()
    losses = detector(**data, mode='loss')
    total = sum(sum(values) for values in losses.values())
    assert set(losses) == {'loss_cls', 'loss_bbox'} and total.isfinite()
    total.backward()
    assert detector.backbone.stem[0].conv.weight.grad.abs().max() > 0

    detector.eval()
    data = detector.data_preprocessor(packed, training=False)
    with torch.no_grad():
        predictions = detector(**data, mode='predict')
        scores, boxes = detector(**data, mode='tensor')
    assert [type(prediction) for prediction in predictions] == [DetDataSample] * 2
    anchors = detector.bbox_head.num_base_priors
    sides = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # of strides 8, 16, 32, 64, 128
    assert [tuple(level.shape) for level in scores] == [
        (2, anchors * num_classes, *side) for side in sides
    ]
    assert [tuple(level.shape) for level in boxes] == [(2, anchors * 4, *side) for side in sides]


@pytest.mark.parametrize('name', ['mask-rcnn_evit_m0', 'mask-rcnn_evit_m4_digits'])
def test_instance_segmenter_runs_in_loss_and_predict_mode(name):
    cfg = load(name)
    cfg.model.backbone.init_cfg = None  # the released weights are not here
    cfg.model.train_cfg.rcnn.sampler.num = 32
    detector = MODELS.build(cfg.model)
    detector.init_weights()
    num_classes = cfg.model.roi_head.mask_head.num_classes
    assert num_classes == cfg.model.roi_head.bbox_head.num_classes
    sides = [[3, 128, 192], [3, 125, 130]]
    packed = demo_mm_inputs(2, sides, num_classes=num_classes, with_mask=True)

    data = detector.data_preprocessor(packed, training=True)
    losses = detector.train()(**data, mode='loss')
    flat = [
        loss for value in losses.values() for loss in (value if type(value) is list else [value])
    ]
    names = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask', 'acc'}
    assert set(losses) == names and all(loss.isfinite().all() for loss in flat)
    sum(value.sum() for name, value in losses.items() if name == 'loss_mask').backward()
    assert detector.backbone.stem[0].conv.weight.grad.abs().max() > 0

    strides = cfg.model.rpn_head.anchor_generator.strides
    maps = detector.extract_feat(data['inputs'])
    assert [192 / level.shape[-1] for level in maps] == strides == [4, 8, 16, 32, 64]
    detector.test_cfg.rcnn.score_thr = 0.0
    detector.rpn_head.test_cfg.max_per_img = 5
    detector.eval()
    data = detector.data_preprocessor(packed, training=False)
    with torch.no_grad():
        predictions = detector(**data, mode='predict')
    for prediction, (_, height, width) in zip(predictions, sides, strict=True):
        instances = prediction.pred_instances
        assert len(instances) and instances.masks.shape[1:] == (height, width)


@pytest.mark.parametrize('family', FAMILIES)
def test_models_of_a_family_differ_only_in_their_backbone(family):
    rest = []
    for arch, widths in WIDTHS.items():
        cfg = load(f'{family}_evit_{arch}')
        check_model(cfg.model)  # follows the maps through neck and heads
        backbone = cfg.model.backbone
        assert (backbone.pop('arch'), cfg.model.neck.pop('in_channels')) == (arch, widths)
        released = dict(type='Pretrained', checkpoint=f'evit://{arch}', prefix='backbone.')
        assert backbone.pop('init_cfg') == released
        rest.append(cfg.to_dict())
    assert all(others == rest[0] for others in rest)


@pytest.mark.parametrize('family', FAMILIES)
def test_m4_follows_the_published_recipe(family):
    cfg = load(f'{family}_evit_m4')
    assert cfg.train_cfg.max_epochs == 12 and cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 500, False)
    assert steps.milestones == [8, 11]
    resize, flip = cfg.train_dataloader.dataset.pipeline[2:4]
    assert resize.scale == (1333, 800) and flip.prob == 0.5
    assert cfg.model.data_preprocessor.pad_size_divisor == 32

    detector = MODELS.build(cfg.model).train()
    assert not any(
        module.training
        for module in detector.backbone.modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    )
    optimizer = build_optim_wrapper(detector, cfg.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    for group in optimizer.param_groups:
        assert group['lr'] == 1e-4
        for parameter in group['params']:
            is_bias_table = names[id(parameter)].endswith('attention_biases')
            assert group['weight_decay'] == (0 if is_bias_table else 0.05)
