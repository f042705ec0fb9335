"""The configs of detectors and segmentors; test-time augmentation of every config."""

import ast
import math
import re
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from making_models import build_model, read_optimizer
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hub import get_config
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mmevit.checks.models import check_model
from mmevit.models import EfficientViT

WIDTHS = {arch: list(sizes.embed_dims) for arch, sizes in EfficientViT.arch_zoo.items()}
FAMILIES = dict.fromkeys(('retinanet', 'mask-rcnn'), (*WIDTHS, 'm4_cosine', 'm4_digits'))
FAMILIES['retinanet'] += ('m4_bccd',)
FAMILIES['rtmdet'] = (*WIDTHS, 'm4_distill', 'm0_digits', 'm1_bccd', 'm4_bccd')
FAMILIES['rtmdet-ins'] = ('m4',)
FAMILIES['semantic-fpn'] = ('m4', 'm4_digits')
NAMES = [f'{family}_evit_{name}' for family, names in FAMILIES.items() for name in names]
DIGITS = [name for name in NAMES if name.endswith('digits')]
BCCD = [name for name in NAMES if name.endswith('bccd')]
SEGMENTOR = 'semantic-fpn_evit_m4'


def load(name):
    cfg = Config.fromfile(f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


def build_m0(cfg):
    cfg.model.backbone.arch, cfg.model.neck.in_channels = 'm0', neck_channels(cfg, 'm0')
    return build_model(cfg)


def neck_channels(cfg, arch):
    widths = WIDTHS[arch]
    return [widths[0] // 2, *widths] if cfg.model.backbone.get('out_stem') else widths


# Also set by configs of mmdet, mmpretrain and mmsegmentation.
KEYS = re.compile(
    '_base_|auto_scale_lr|custom_(hooks|imports)|data_(preprocessor|root|source)|dataset_type'
    '|default_hooks|log_processor|metainfo|model|norm_cfg|optim_wrapper|param_scheduler|sync_bn'
    '|(train|val|test)_(cfg|dataloader|evaluator|pipeline)|train_pipeline_stage2'
    '|tta_(model|pipeline)'
)


def test_configs_set_no_helper_variables():
    for path in Path('configs').rglob('*.py'):
        lines = ast.parse(path.read_text()).body
        names = [ast.unparse(target) for line in lines for target in line.targets]
        assert all(map(KEYS.fullmatch, names)), (path, names)


def test_every_detector_and_segmentor_is_tested():
    found = {path.stem for path in Path('configs').glob('*.py')}
    assert set(NAMES) == {name for name in found if not name.startswith('evit_')}


# The other configs on COCO differ from those of M0, which run below, only in their backbone.
@pytest.mark.parametrize('name', [*DIGITS, *BCCD, SEGMENTOR])
def test_parts_fit_each_other(name):
    check_model(load(name).model)


def test_true_boxes_of_photographs_have_an_ap_of_one(bccd):
    cfg = load('rtmdet_evit_m1_bccd')
    train, test = (cfg[f'{split}_dataloader'].dataset for split in ('train', 'test'))
    train.data_root = test.data_root = str(bccd)
    train, test = DATASETS.build(train), DATASETS.build(test)
    assert (len(train), len(test)) == (205, 72)
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = test.metainfo
    for sample in test:
        found = sample['data_samples']
        found.pred_instances = InstanceData(**found.gt_instances.to_dict())
        found.pred_instances.scores = torch.ones(len(found.gt_instances))
        found.pred_instances.bboxes = found.gt_instances.bboxes.tensor
        metric.process({}, [found.to_dict()])
    assert metric.evaluate(len(test))['coco/bbox_mAP'] > 0.99


def check_losses(model, data, expected):
    losses = model.train()(**model.data_preprocessor(data, training=True), mode='loss')
    assert set(losses) == expected
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite() and model.backbone.stem[0].conv.weight.grad.abs().max() > 0


RPN_LOSSES = {'loss_rpn_cls', 'loss_rpn_bbox', 'acc'}


@pytest.mark.parametrize(
    ('name', 'losses', 'strides'),
    [
        ('retinanet_evit_m0', set(), [8, 16, 32, 64, 128]),
        ('mask-rcnn_evit_m0', RPN_LOSSES | {'loss_mask'}, [4, 8, 16, 32, 64]),
        ('rtmdet-ins_evit_m4', {'loss_mask'}, [8, 16, 32]),
        *((f'rtmdet_evit_{arch}', set(), [8, 16, 32]) for arch in WIDTHS),
    ],
)
def test_detector_runs_in_loss_and_predict_mode(name, losses, strides):
    cfg = load(name)
    has_masks = 'loss_mask' in losses
    if name.startswith('mask-rcnn'):  # saves time
        cfg.model.train_cfg.rcnn.sampler.num = 32
        cfg.model.test_cfg.rpn.max_per_img = 5
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    if name.startswith('rtmdet-ins'):  # random scores are low
        cfg.model.test_cfg.score_thr = 0.0
    model = build_model(cfg)
    sides = [(3, 64, 128), (3, 61, 66)]
    data = demo_mm_inputs(2, sides, num_classes=80, with_mask=has_masks)
    check_losses(model, data, losses | {'loss_cls', 'loss_bbox'})

    data = model.eval().data_preprocessor(data, training=False)
    for sample in data['data_samples']:  # their original size is that of the image
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        maps = model.extract_feat(data['inputs'])
        predictions = model(**data, mode='predict')
    head = model.rpn_head if name.startswith('mask-rcnn') else model.bbox_head
    assert head.prior_generator.strides == [(stride, stride) for stride in strides]
    sizes = [(math.ceil(64 / stride), math.ceil(128 / stride)) for stride in strides]
    assert [level.shape[2:] for level in maps] == sizes
    for prediction, (_, *size) in zip(predictions, sides, strict=True):
        instances = prediction.pred_instances
        assert len(instances) and instances.labels.max() < 80
        assert not has_masks or [*instances.masks.shape[1:]] == size


@pytest.mark.parametrize('family', ['retinanet', 'mask-rcnn', 'rtmdet'])
def test_models_of_a_family_differ_only_in_their_backbone_and_rtmdet_in_width(family):
    rest = []
    for arch in WIDTHS:
        cfg = load(f'{family}_evit_{arch}')
        channels = neck_channels(cfg, arch)
        backbone = cfg.model.backbone
        assert (backbone.pop('arch'), cfg.model.neck.pop('in_channels')) == (arch, channels)
        released = dict(type='Pretrained', checkpoint=f'evit://{arch}', prefix='backbone.')
        assert backbone.pop('init_cfg') == released
        if family == 'rtmdet':
            head = cfg.model.bbox_head
            width = cfg.model.neck.pop('out_channels')
            assert head.pop('in_channels') == head.pop('feat_channels') == width
        rest.append(cfg.to_dict())
    assert all(others == rest[0] for others in rest)


@pytest.mark.parametrize(
    ('name', 'reference'),
    [
        ('rtmdet_evit_m4', 'rtmdet_tiny_8xb32-300e_coco'),
        ('rtmdet-ins_evit_m4', 'rtmdet-ins_tiny_8xb32-300e_coco'),
    ],
)
def test_recipe_is_that_of_rtmdet_tiny(name, reference):
    cfg, usual = load(name), get_config(f'mmdet::rtmdet/{reference}.py')
    assert cfg.train_cfg == usual.train_cfg
    assert cfg.auto_scale_lr.base_batch_size == 8 * usual.train_dataloader.batch_size == 256
    assert cfg.param_scheduler == usual.param_scheduler
    assert cfg.optim_wrapper.optimizer == usual.optim_wrapper.optimizer
    assert cfg.train_dataloader.batch_size == usual.train_dataloader.batch_size
    assert without_backends(cfg.train_dataloader.dataset.pipeline) == without_backends(
        usual.train_dataloader.dataset.pipeline
    )
    for hook, wanted in zip(cfg.custom_hooks, usual.custom_hooks, strict=False):
        assert hook.pop('switch_pipeline', 0) == without_backends(wanted.pop('switch_pipeline', 0))
        assert hook == wanted


def without_backends(pipeline):
    for transform in pipeline or ():
        transform.pop('backend_args', None)
    return pipeline


@pytest.mark.parametrize('family', ['retinanet', 'mask-rcnn'])
def test_detectors_follow_the_published_recipe(family):
    cfg = load(f'{family}_evit_m4')
    assert cfg.train_cfg.max_epochs == 12 and cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end, warm_up.by_epoch) == (0.001, 500, False)
    assert steps.milestones == [8, 11]
    resize, flip = cfg.train_dataloader.dataset.pipeline[2:4]
    assert resize.scale == (1333, 800) and flip.prob == 0.5
    assert cfg.model.data_preprocessor.pad_size_divisor == 32

    model = build_m0(cfg).train()
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms and not any(layer.training for layer in norms)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    for name, settings in read_optimizer(model, cfg.optim_wrapper).items():
        assert settings == (1e-4, 0 if name.endswith('attention_biases') else 0.05)


def test_segmentor_runs_in_loss_and_predict_mode():
    cfg = load(SEGMENTOR)
    size = cfg.model.data_preprocessor.size = (64, 64)  # saves time
    model = build_m0(cfg)
    data = dict(inputs=[], data_samples=[])
    for _ in range(2):
        segments = PixelData(data=torch.randint(150, (1, *size)))
        metainfo = dict(img_shape=size, ori_shape=(50, 65), pad_shape=size)
        data['inputs'].append(torch.randint(256, (3, *size), dtype=torch.uint8))
        data['data_samples'].append(SegDataSample(gt_sem_seg=segments, metainfo=metainfo))
    check_losses(model, data, {'decode.loss_ce', 'decode.acc_seg'})

    data = model.eval().data_preprocessor(data, training=False)
    with torch.no_grad():
        maps = model.extract_feat(data['inputs'])
        predictions = model(**data, mode='predict')
    strides = [size[0] / level.shape[-2] for level in maps]
    assert strides == [4, 8, 16, 32] == cfg.model.decode_head.feature_strides
    for prediction in predictions:
        assert prediction.pred_sem_seg.shape == (50, 65)
        assert prediction.seg_logits.shape == (50, 65) and len(prediction.seg_logits.data) == 150


def test_ade20k_config_has_the_schedule_and_data_of_poolformer():
    cfg, usual = (
        load(SEGMENTOR),
        Config.fromfile(
            Path(mmseg.__file__).parent
            / '.mim/configs/poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py'
        ),
    )
    assert cfg.train_cfg.max_iters == usual.train_cfg.max_iters == 40000
    assert cfg.auto_scale_lr.base_batch_size == 8 * usual.train_dataloader.batch_size == 32
    for key in ('lr', 'weight_decay'):
        assert cfg.optim_wrapper.optimizer[key] == usual.optim_wrapper.optimizer[key]
    (schedule,), (wanted,) = cfg.param_scheduler, usual.param_scheduler
    assert all(wanted.get(key, 0) == value for key, value in schedule.items())
    assert cfg.train_dataloader.dataset.type == 'ADE20KDataset'
    assert cfg.train_dataloader.dataset.pipeline == usual.train_pipeline
    init_cfg = dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.')
    assert cfg.model.backbone.init_cfg == init_cfg
    assert cfg.sync_bn == 'torch'  # SyncBN layers in the config would require a GPU
    assert 'SyncBN' not in str(cfg.model)
    for name, (_, decay) in read_optimizer(build_m0(cfg), cfg.optim_wrapper).items():
        assert (decay == 0) == name.endswith('attention_biases')


# Test-time augmentation. The other configs differ from one of these only in their network.


@pytest.mark.parametrize(
    'name',
    [
        'evit_m0_digits',
        'evit_m0_imagenette',
        'evit_m4_in1k',
        *(f'evit_m5_{data}' for data in ('in1k-384', 'in1k-512', 'cars', 'cifar10', 'finetune')),
        *(f'{family}_evit_m4' for family in FAMILIES if family != 'rtmdet-ins'),
        *DIGITS,
        *BCCD,
    ],
)
def test_every_config_has_views_for_test_time_augmentation_the_first_as_in_its_test(name, tmp_path):
    cfg = load(name)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image, segments = tmp_path / 'image.png', tmp_path / 'segments.png'
    Image.fromarray(pixels).save(image)
    Image.fromarray(pixels[..., 0] % 10).save(segments)

    def prepare(pipeline):
        sample = dict(img=pixels, img_path=str(image), img_id=1, height=60, width=80, instances=[])
        sample.update(seg_map_path=str(segments), seg_fields=[])
        return Compose(pipeline)({**sample, 'reduce_zero_label': name == SEGMENTOR})['inputs']

    views, plain = prepare(cfg.tta_pipeline), prepare(cfg.test_dataloader.dataset.pipeline)
    assert len(views) == math.prod(map(len, cfg.tta_pipeline[-1].transforms)) > 1
    if name == SEGMENTOR:
        # mmsegmentation's own scale factors of an image that its test makes larger.
        assert {view.shape[2] for view in views} == {40, 60, 80, 100, 120, 140}
    elif not name.endswith('digits') or name.startswith('evit'):
        assert views[0].equal(plain)
    flipped = [any(one.equal(two.flip(2)) for one in views) for two in views]
    assert all(flipped) if not name.endswith('digits') else not any(flipped)
