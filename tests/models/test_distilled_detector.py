import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmevit.models.distilled_detector import channel_wise_divergence
from mmevit.models.teacher import read_settings
from mmevit.utils.errors import ConfigError

CHANNELS = 24  # of the teacher


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture(scope='module')
def student_cfg():
    model = Config.fromfile('configs/rtmdet_evit_m0_digits.py').model
    return model.to_dict()


def make_teacher_cfg(student_cfg, **kwargs):
    cfg = copy.deepcopy(student_cfg)
    cfg['neck']['out_channels'] = CHANNELS
    cfg['bbox_head'].update(in_channels=CHANNELS, feat_channels=CHANNELS)
    return cfg | kwargs


def make(student_cfg, teacher_cfg=None, type='DistilledSingleStageDetector', **kwargs):
    teacher_cfg = make_teacher_cfg(student_cfg) if teacher_cfg is None else teacher_cfg
    levels = dict(student_channels=[64, 64, 64], teacher_channels=CHANNELS)
    torch.manual_seed(0)
    cfg = student_cfg | dict(type=type, teacher=teacher_cfg) | levels | kwargs
    return MODELS.build(copy.deepcopy(cfg))


def make_batch(model):
    batch = demo_mm_inputs(2, [(3, 128, 96), (3, 128, 96)], num_classes=10)
    return model.data_preprocessor(batch, training=True)


def test_channel_wise_divergence_is_equation_4():
    student, teacher = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64)
    wanted = 0.0
    for image in range(2):
        for channel in range(5):
            s, t = ((maps[image, channel] / 3).exp() for maps in (student, teacher))
            s, t = s / s.sum(), t / t.sum()
            wanted += 3**2 / 5 * (t * (t / s).log()).sum() / 2
    torch.testing.assert_close(channel_wise_divergence(student, teacher, 3.0), wanted)
    assert channel_wise_divergence(teacher, teacher, 3.0).abs() < 1e-12


def test_the_loss_compares_each_level_with_the_teachers(student_cfg):
    model = make(student_cfg, distillation_weight=0.5, temperature=2.0).train()
    batch = make_batch(model)
    plain = MODELS.build(copy.deepcopy(student_cfg)).train()
    plain.load_state_dict(model.state_dict(), strict=False)
    losses = model(**batch, mode='loss')
    wanted = plain(**batch, mode='loss')
    maps = plain.extract_feat(batch['inputs'])
    teacher_maps = model.teacher.extract_feat(batch['inputs'])
    wanted['loss_distillation'] = 0.5 * sum(
        channel_wise_divergence(adapter(map_), teacher_map, 2.0)
        for adapter, map_, teacher_map in zip(model.adapters, maps, teacher_maps, strict=True)
    )
    torch.testing.assert_close(losses, wanted)
    losses['loss_distillation'].backward()
    assert model.backbone.stem[0].conv.weight.grad.abs().max() > 0


def test_the_teacher_gets_its_own_channel_order_and_normalization(student_cfg):
    preprocessor = dict(type='DetDataPreprocessor', mean=[1, 2, 3], std=[4, 5, 6])
    teacher_cfg = make_teacher_cfg(student_cfg, data_preprocessor=preprocessor)
    model = make(student_cfg, teacher_cfg)
    pixels = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    for_teacher = model.teacher.data_preprocessor(dict(inputs=[pixels]))['inputs']
    for_student = model.data_preprocessor(dict(inputs=[pixels]))['inputs']
    torch.testing.assert_close(model.normalize_for_teacher(for_student), for_teacher)


def test_a_step_neither_changes_nor_contains_the_teacher(student_cfg):
    model = make(student_cfg).train()
    batch = make_batch(model)
    before = copy.deepcopy(model.teacher.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    optimizer.step()
    after = model.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(not parameter.requires_grad for parameter in model.teacher.parameters())
    plain = MODELS.build(copy.deepcopy(student_cfg)).state_dict()
    assert {name for name in model.state_dict() if 'adapters' not in name} == set(plain)


def test_released_teacher_of_the_config_fits_the_student():
    cfg = Config.fromfile('configs/rtmdet_evit_m4_distill.py').model
    cfg.backbone.init_cfg = None
    teacher_cfg = read_settings(cfg.teacher)
    weights = teacher_cfg.pop('init_cfg')
    assert weights['type'] == 'Pretrained' and 'rtmdet_m_8xb32-300e_coco' in weights['checkpoint']
    teacher_cfg['backbone']['init_cfg'] = None  # downloads nothing
    model = MODELS.build(cfg | dict(teacher=teacher_cfg)).train()
    losses = model(**make_batch(model), mode='loss')
    assert losses['loss_distillation'].isfinite()


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [(dict(teacher_channels=32), 'teacher_channels'), (dict(temperature=0), 'temperature=0')],
)
def test_invalid_arguments_raise(student_cfg, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        model = make(student_cfg, **kwargs)
        model(**make_batch(model), mode='loss')
