import copy

import pytest
import timm
import torch
from measuring import peak_memory
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from needing import needs_nanoseconds
from torch.utils.data import Dataset

from mmevit.checkpoint import read_checkpoint
from mmevit.models import DistilledImageClassifier
from mmevit.utils.errors import ConfigError

TIMM_TEACHER = dict(type='TimmClassifier', model_name='resnet10t', num_classes=5)
MMPRETRAIN_TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, stem_channels=8, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
)
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def student_config(**kwargs):
    return (
        dict(
            backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='EfficientViTClsHead', num_classes=5, in_channels=192, distillation=True
            ),
            data_preprocessor=dict(num_classes=5, mean=MEAN, std=STD, to_rgb=True),
        )
        | kwargs
    )


def make(teacher=TIMM_TEACHER, **kwargs):
    return DistilledImageClassifier(teacher=copy.deepcopy(teacher), **student_config(**kwargs))


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64)


@pytest.fixture
def samples():
    return [DataSample().set_gt_label(label) for label in (0, 3, 3, 1)]


def log_softmax(scores):
    return scores - scores.exp().sum(1, keepdim=True).log()


def losses_by_formula(model, images, kind, weight, temperature):
    """The two losses of section 4 of the paper of DeiT, from the heads' scores."""
    with torch.no_grad():
        teacher_scores = model.teacher(images, mode='tensor')
        pooled = model.extract_feat(images)[0]
        scores, imitating = model.head.head(pooled), model.head.head_dist(pooled)
    rows = torch.arange(4)
    label_loss = -log_softmax(scores)[rows, torch.tensor([0, 3, 3, 1])].mean()
    if kind == 'hard':
        teacher_loss = -log_softmax(imitating)[rows, teacher_scores.argmax(1)].mean()
    else:
        target = (teacher_scores / temperature).softmax(1)
        gap = log_softmax(teacher_scores / temperature) - log_softmax(imitating / temperature)
        teacher_loss = temperature**2 * (target * gap).sum(1).mean()
    return (1 - weight) * label_loss, weight * teacher_loss


@pytest.mark.parametrize('teacher', [TIMM_TEACHER, MMPRETRAIN_TEACHER], ids=['timm', 'mmpretrain'])
@pytest.mark.parametrize(
    ('kind', 'weight', 'temperature'), [('hard', 0.3, 1.0), ('soft', 0.9, 3.0)]
)
def test_losses_are_those_of_the_formula(images, samples, teacher, kind, weight, temperature):
    model = make(
        teacher, distillation_type=kind, distillation_weight=weight, temperature=temperature
    ).train()
    losses = model(images, samples, mode='loss')
    wanted = losses_by_formula(model, images, kind, weight, temperature)
    torch.testing.assert_close((losses['loss_cls'], losses['loss_distillation']), wanted)
    sum(losses.values()).backward()
    assert model.backbone.stem[0].conv.weight.grad.abs().max() > 0
    assert model.head.head_dist.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize('to_rgb', [False, True])
def test_teacher_gets_images_in_its_own_normalization_and_channel_order(images, to_rgb):
    preprocessor = dict(mean=[127.5] * 3, std=[100.0, 110.0, 120.0], to_rgb=to_rgb)
    model = make({**TIMM_TEACHER, 'data_preprocessor': preprocessor})
    pixels = images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    pixels = pixels if to_rgb else pixels.flip(1)
    own_images = (pixels - 127.5) / torch.tensor([100.0, 110.0, 120.0]).view(3, 1, 1)
    wanted = model.teacher(own_images, mode='tensor')
    torch.testing.assert_close(model.compute_teacher_logits(images), wanted)
    assert not torch.allclose(wanted, model.teacher(images, mode='tensor'))


def test_teacher_takes_its_weights_from_init_cfg(tmp_path, images):
    weights = make(MMPRETRAIN_TEACHER).teacher.state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'))
    teacher = make({**MMPRETRAIN_TEACHER, 'init_cfg': init_cfg}).teacher
    assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize('teacher', [TIMM_TEACHER, MMPRETRAIN_TEACHER], ids=['timm', 'mmpretrain'])
def test_weights_with_other_names_raise_instead_of_leaving_the_teacher_random(tmp_path, teacher):
    weights = {f'net.{name}': value for name, value in make(teacher).teacher.state_dict().items()}
    torch.save(weights, tmp_path / 'teacher.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'))
    with pytest.raises(ConfigError, match='weights are missing, such as '):
        make({**teacher, 'init_cfg': init_cfg}).teacher  # noqa: B018


@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224'])
def test_teacher_keeps_what_timm_has_loaded(tmp_path, name):
    weights = timm.create_model(name, num_classes=5).state_dict()
    torch.save(weights, tmp_path / 'teacher.pth')
    path = str(tmp_path / 'teacher.pth')
    teacher = make({**TIMM_TEACHER, 'model_name': name, 'checkpoint_path': path}).teacher
    loaded = teacher.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in loaded.items())


def test_teacher_may_have_initial_values_by_layer():
    init_cfg = [dict(type='Constant', val=0.5, layer='Linear')]
    teacher = make({**MMPRETRAIN_TEACHER, 'init_cfg': init_cfg}).teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_random_teacher_logs_a_warning(log, images, samples):
    make()(images, samples, mode='loss')
    assert 'The teacher has random weights' in log.read_text()


class RandomImages(Dataset):
    metainfo = dict(classes=('a', 'b', 'c', 'd', 'e'))

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        return dict(inputs=image, data_samples=DataSample().set_gt_label(index % 5))


def test_training_neither_changes_nor_saves_the_teacher(tmp_path):
    model = make(MMPRETRAIN_TEACHER)
    before = copy.deepcopy(model.teacher.state_dict())
    student_names = set(model.state_dict())
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            dataset=RandomImages(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        custom_hooks=[dict(type='EMAHook')],
        default_scope='mmpretrain',
    )
    weight = model.backbone.stem[0].conv.weight.clone()
    runner.train()
    assert not torch.equal(weight, model.backbone.stem[0].conv.weight)
    after = model.teacher.cpu().state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert not any(module.training for module in model.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())

    checkpoint = read_checkpoint(tmp_path / 'epoch_2.pth')
    assert set(checkpoint['state_dict']) == student_names
    averaged = {name.removeprefix('module.') for name in checkpoint['ema_state_dict']}
    assert averaged == student_names | {'steps'}
    optimised = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    assert optimised == {id(parameter) for parameter in model.parameters()}


def test_evaluation_needs_no_teacher(images):
    model = make(dict(type='TimmClassifier', model_name='there_is_no_such_model')).eval()
    assert model(images, mode='tensor').shape == (4, 5)
    assert len(model(images, mode='predict')) == 4


@needs_nanoseconds
def test_training_memory_is_that_of_the_student_and_a_teacher_forward(samples):
    images = torch.randn(4, 3, 128, 128)
    model = make().train()
    teacher = model.teacher

    def train_student_alone():
        model.zero_grad()
        model.head.loss(model.extract_feat(images), samples)['loss'].backward()

    def train():
        model.zero_grad()
        sum(model(images, samples, mode='loss').values()).backward()

    @torch.no_grad()
    def ask():
        teacher(images, mode='tensor')

    limit = 1.05 * (peak_memory(train_student_alone) + peak_memory(ask))
    assert peak_memory(train) <= limit
    # The limit is one that a teacher with gradients would break.
    teacher.requires_grad_(True)
    model.compute_teacher_logits = lambda images: teacher(images, mode='tensor')
    assert peak_memory(train) > limit


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        (dict(distillation_type='warm'), "'warm'"),
        (dict(distillation_weight=1.5), '1.5'),
        (dict(temperature=0), 'temperature=0'),
        (
            dict(head=dict(type='LinearClsHead', num_classes=5, in_channels=192)),
            'distillation=True',
        ),
    ],
)
def test_invalid_arguments_raise(wrong, words):
    with pytest.raises(ConfigError, match=words):
        make(**wrong)


@pytest.mark.parametrize(
    'wrong',
    [dict(model_name='resnet1000'), dict(checkpoint_path='no/such.pth'), dict(type='NoSuchModel')],
)
def test_teacher_that_cannot_be_built_raises_one_sentence(images, samples, wrong):
    model = make(TIMM_TEACHER | wrong)
    with pytest.raises(ConfigError, match=f'The teacher .*{list(wrong.values())[0]}') as caught:
        model(images, samples, mode='loss')
    assert '\n' not in str(caught.value)


def test_teacher_of_other_classes_raises(images, samples):
    model = make({**TIMM_TEACHER, 'num_classes': 7})
    with pytest.raises(ConfigError, match='has 7 classes and the student 5'):
        model(images, samples, mode='loss')


def test_teacher_of_the_recipe_is_timms_regnety_16gf():
    cfg = Config.fromfile('configs/evit_m4_in1k-distill-1000e.py')
    with torch.device('meta'):
        teacher = timm.create_model(cfg.model.teacher.model_name)
    assert round(sum(p.numel() for p in teacher.parameters()) / 1e6, 1) == 83.6
