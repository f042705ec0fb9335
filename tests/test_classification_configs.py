import copy
import functools
import math
from pathlib import Path

import making_datasets
import mmpretrain
import numpy as np
import pytest
import timm
import timm.optim
import torch
from making_models import read_optimizer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.testing.runner_test_case import ToyModel
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import DATASETS, MODELS
from mmpretrain.structures import DataSample
from PIL import Image

from mmevit.checkpoint import convert_names, read_checkpoint
from mmevit.models import EfficientViT
from mmevit.utils.configs import find_datasets

WIDTHS = {arch: sizes.embed_dims[-1] for arch, sizes in EfficientViT.arch_zoo.items()}
SIZES = {'evit_m5_in1k-384': 384, 'evit_m5_in1k-512': 512}
DISTILLED = 'evit_m4_in1k-distill-1000e'
NUM_CLASSES = dict(in1k=1000, cifar10=10, cifar100=100, cars=196, flowers=102, pets=37)
TRANSFER = tuple(f'evit_m5_{data}' for data in NUM_CLASSES if data != 'in1k')
# Learning rate, weight decay, batch size, epochs. The configs that are not here differ from one of
# these only in their network, which a test below checks.
RECIPES = {
    'evit_m5_in1k': (1e-3, 0.025, 2048, 300),
    DISTILLED: (1e-3, 0.025, 2048, 1000),
    'evit_m5_in1k-384': (2e-5, 1e-8, 512, 30),
    'evit_m5_in1k-512': (2e-5, 1e-8, 512, 60),
    **dict.fromkeys(TRANSFER, (1e-3, 1e-8, 256, 300)),
}
each_recipe = pytest.mark.parametrize('name', RECIPES)


@functools.cache
def read(name):
    cfg = Config.fromfile(f'configs/{name}.py')
    # Formatting takes most of the time of the dumps that a run makes.
    return Config(cfg.to_dict(), format_python_code=False)


def load(name):
    return copy.deepcopy(read(name))


def data_of(name):
    return name.split('_')[2].split('-')[0]


def size_of(name):
    return SIZES.get(name, 224)


def use_m0(model):
    model.backbone.update(arch='m0', init_cfg=None)
    model.head.in_channels = WIDTHS['m0']
    model.init_cfg = None


def test_every_result_of_the_paper_has_a_tested_config():
    found = {path.stem for path in Path('configs').glob('evit_*.py')}
    networks = {f'evit_{arch}_{data}' for arch in WIDTHS for data in NUM_CLASSES}
    photographs = {f'evit_{arch}_imagenette' for arch in WIDTHS} | {'evit_m0_imagenette_distill'}
    # tools/finetune.py completes evit_m5_finetune; tests/cli trains evit_m0_digits.
    assert found - {'evit_m5_finetune', 'evit_m0_digits', *photographs} == {*networks, *RECIPES}


def test_student_of_photographs_learns_from_a_teacher_with_its_classes(tmp_path):
    teacher = timm.create_model('efficientnet_lite0', num_classes=10)
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    cfg = load('evit_m0_imagenette_distill')
    cfg.model.teacher.init_cfg.checkpoint = str(tmp_path / 'teacher.pth')
    samples = [DataSample().set_gt_label(label) for label in (0, 9)]
    losses = MODELS.build(cfg.model)(torch.rand(2, 3, 160, 160), samples, mode='loss')
    assert losses.keys() == {'loss_cls', 'loss_distillation'}


def test_configs_of_photographs_differ_only_in_the_network():
    first = load('evit_m0_imagenette')
    for arch in WIDTHS:
        cfg = load(f'evit_{arch}_imagenette')
        assert cfg.model.backbone.pop('arch') == arch
        assert cfg.model.head.in_channels == WIDTHS[arch]
        cfg.model.head.in_channels = first.model.head.in_channels
        first.model.backbone.pop('arch', None)
        assert cfg.to_dict() == first.to_dict()


# Data and whole runs


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    """The folder of each data set, by the name that the configs have for it."""
    folder = tmp_path_factory.mktemp('sets')
    for name in NUM_CLASSES:
        getattr(making_datasets, f'make_{name.replace("in1k", "imagenet")}')(folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        making_datasets.accept_cifar(monkeypatch, CIFAR10, folder / 'cifar10')
        making_datasets.accept_cifar(monkeypatch, CIFAR100, folder / 'cifar100')
        yield {name: folder / name for name in NUM_CLASSES}


@each_recipe
def test_training_reads_every_class_and_evaluation_sees_images_as_timm_does(name, roots):
    cfg = load(name)
    size, num_classes = size_of(name), NUM_CLASSES[data_of(name)]
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', **cfg.data_preprocessor))
    assert cfg.model.head.num_classes == preprocessor.num_classes == num_classes
    for split in ('train', 'val'):
        (dataset_cfg,) = find_datasets(cfg[f'{split}_dataloader'].dataset)
        dataset = DATASETS.build({**dataset_cfg, 'data_root': str(roots[data_of(name)])})
        labels = dataset.get_gt_labels()
        assert (labels.min(), labels.max()) == (0, num_classes - 1)
        # mmpretrain knows no names for the flowers.
        assert dataset_cfg.type == 'Flowers102' or len(dataset.CLASSES) == num_classes
        assert dataset[0]['inputs'].shape == (3, size, size)

    whole_image = name in (*SIZES, *TRANSFER)  # made square
    transform = timm.data.create_transform(
        (3, size, size),
        interpolation='bicubic',
        crop_mode='squash' if whole_image else 'center',
        crop_pct=1.0 if whole_image else 0.875,
    )
    for i in range(len(dataset)):
        info, item = dataset.get_data_info(i), dataset[i]
        batch = dict(inputs=item['inputs'][None], data_samples=[item['data_samples']])
        found = preprocessor(batch)['inputs'][0]
        image = Image.fromarray(info['img']) if 'img' in info else Image.open(info['img_path'])
        torch.testing.assert_close(found, transform(image.convert('RGB')), rtol=1e-5, atol=1e-5)


class Recorder(Hook):
    """Keep the weights before training and after every iteration, and those of each evaluation."""

    def before_train(self, runner):
        self.trained, self.evaluated = [copy.deepcopy(runner.model.state_dict())], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(copy.deepcopy(runner.model.state_dict()))


def train(cfg, root, work_dir, epochs=1):
    """Train M0 by a config, on two images at a time, from random weights and at a constant rate."""
    use_m0(cfg.model)
    if 'teacher' in cfg.model:
        cfg.model.teacher.update(model_name='resnet10t', pretrained=False)
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    cfg.train_cfg.max_epochs, cfg.param_scheduler = epochs, None
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.checkpoint.save_optimizer = False  # saves time
    for split in ('train', 'val', 'test'):
        dataloader = cfg[f'{split}_dataloader']
        # mmpretrain's tools set the collate function.
        dataloader.update(num_workers=0, collate_fn=dict(type='default_collate'))
        dataloader.dataset.data_root = str(root)
    runner = Runner.from_cfg(cfg)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.train()

    assert runner.iter == 2 * epochs  # of five images, the last is dropped
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2 * epochs and np.isfinite(losses).all()
    # A fraction of the images, of which there are few.
    top1 = runner.message_hub.get_scalar('val/accuracy/top1').current()
    correct = top1 / 100 * len(runner.val_dataloader.dataset)
    assert correct == pytest.approx(round(correct), abs=1e-3)
    first, last = recorder.trained[0], recorder.trained[-1]
    names = [name for name, _ in runner.model.named_parameters()]
    assert not [name for name in names if last[name].equal(first[name])]
    saved = read_checkpoint(work_dir / f'epoch_{epochs}.pth')
    assert saved['meta']['epoch'] == epochs
    return runner, recorder, saved


@pytest.mark.parametrize('name', ['evit_m5_in1k-384', 'evit_m5_cifar10', DISTILLED])
def test_config_trains_evaluates_and_saves(name, roots, tmp_path):
    train(load(name), roots[data_of(name)], tmp_path)
    assert (tmp_path / 'best_accuracy_top1_epoch_1.pth').exists()


def average(history, momentum):
    """Average weights and float buffers by the formula, in double precision."""
    averages = {name: value.double() for name, value in history[0].items()}
    for weights in history[1:]:
        for name, value in weights.items():
            averages[name] = (1 - momentum) * averages[name] + momentum * value.double()
    return {name: averages[name] for name, value in history[0].items() if value.is_floating_point()}


def test_averaged_weights_are_evaluated_and_saved(roots, tmp_path):
    cfg = load('evit_m5_in1k')
    cfg.custom_hooks[0].momentum = 0.5
    runner, recorder, saved = train(cfg, roots['in1k'], tmp_path, epochs=2)

    assert len(recorder.evaluated) == 2
    wanted = average(recorder.trained[1:], 0.5)
    for name, value in wanted.items():
        for found in (saved['state_dict'][name], recorder.evaluated[-1][name]):
            torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-7)
    last = recorder.trained[-1]
    assert all(saved['ema_state_dict'][f'module.{name}'].equal(last[name]) for name in last)
    assert all(value.equal(last[name]) for name, value in runner.model.state_dict().items())
    for name in ('backbone.stem.0.conv.weight', 'backbone.stem.0.norm.running_mean'):
        assert not torch.allclose(wanted[name], last[name].double(), rtol=0.01)
    best = next(tmp_path.glob('best_accuracy_top1_epoch_*.pth'))
    evaluated = recorder.evaluated[int(best.stem.rpartition('_')[2]) - 1]
    best_weights = read_checkpoint(best)['state_dict']
    assert all(best_weights[name].equal(evaluated[name]) for name in wanted)


# Recipes


@pytest.mark.parametrize('data', NUM_CLASSES)
def test_models_of_a_recipe_differ_only_in_their_network(data):
    rest = []
    for arch, width in WIDTHS.items():
        cfg = load(f'evit_{arch}_{data}')
        backbone = cfg.model.backbone
        assert (backbone.pop('arch'), cfg.model.head.pop('in_channels')) == (arch, width)
        released = dict(type='Pretrained', checkpoint=f'evit://{arch}', prefix='backbone.')
        assert backbone.pop('init_cfg', None) == (None if data == 'in1k' else released)
        rest.append(cfg.to_dict())
    assert all(others == rest[0] for others in rest)


def test_timm_decays_the_same_weights():
    settings = {}
    for name in ('evit_m5_in1k', DISTILLED):
        cfg = load(name)
        use_m0(cfg.model)
        settings[name] = read_optimizer(MODELS.build(cfg.model), cfg.optim_wrapper)
    found, distilled = settings.values()

    reference = timm.create_model('efficientvit_m0')
    weights = convert_names(reference.state_dict(keep_vars=True), 'mmevit')
    names = {value: name for name, value in weights.items()}
    groups = timm.optim.param_groups_weight_decay(
        reference, 0.025, no_weight_decay_list=reference.no_weight_decay()
    )
    assert found == {
        names[parameter]: (1e-3, group['weight_decay'])
        for group in groups
        for parameter in group['params']
    }
    assert set(found.values()) == {(1e-3, 0), (1e-3, 0.025)}
    second_head = {name: distilled.pop(name) for name in {*distilled} - {*found}}
    assert distilled == found and len(second_head) == 4
    for name, (_, decay) in second_head.items():
        assert decay == (0.025 if name.endswith('linear.weight') else 0)


@each_recipe
def test_optimizer_schedule_and_weights_follow_the_recipe(name):
    cfg, imagenet = load(name), load('evit_m5_in1k')
    lr, decay, batch, epochs = RECIPES[name]
    assert cfg.optim_wrapper == dict(
        type='AdaptiveClipOptimWrapper',
        constructor='GroupedOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=decay),
        clip_grad=dict(clip_factor=0.02),
        paramwise_cfg=imagenet.optim_wrapper.paramwise_cfg,
    )
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    sampler = cfg.train_dataloader.sampler
    assert (sampler.type, sampler.num_repeats) == ('RepeatAugSampler', 3)
    assert cfg.train_cfg == {**imagenet.train_cfg, 'max_epochs': epochs}
    same = load('evit_m5_in1k-384' if name in SIZES else 'evit_m5_in1k')
    assert cfg.param_scheduler == same.param_scheduler
    averaging = dict(type='EMAHook', momentum=4e-5, update_buffers=True)
    averages = [hook for hook in cfg.custom_hooks if hook.type == 'EMAHook']
    assert averages == ([] if name in TRANSFER else [averaging])

    windows = {384: (12, 12, 6), 512: (16, 16, 8)}.get(size_of(name), (7, 7, 4))
    assert tuple(cfg.model.backbone.window_sizes) == windows
    released = dict(type='Pretrained', checkpoint='evit://m5') if name in SIZES else None
    assert cfg.model.get('init_cfg') == released


@pytest.mark.parametrize(('name', 'last'), [('evit_m5_in1k', 1e-5), ('evit_m5_in1k-384', 2e-7)])
def test_learning_rate_is_linear_warm_up_then_cosine(name, last, tmp_path):
    cfg = load(name)
    peak, *_, epochs = RECIPES[name]
    runner = Runner(
        model=ToyModel(),
        work_dir=str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader(
            [dict(inputs=torch.rand(2), data_samples=torch.rand(1))] * 4, batch_size=2
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=10**6)),
        default_scope='mmpretrain',
        experiment_name=str(tmp_path),
    )
    runner.train()

    steps, warm_up = np.arange(2 * epochs), 10
    # mmengine is at the peak one iteration before the end of the five epochs of warm-up.
    linear = peak / 1000 + (peak - peak / 1000) * steps / (warm_up - 1)
    progress = (steps - warm_up) / (2 * epochs - warm_up)
    cosine = last + (peak - last) * (1 + np.cos(math.pi * progress)) / 2
    wanted = np.where(steps < warm_up, linear, cosine)
    np.testing.assert_allclose(runner.message_hub.get_scalar('train/lr').data[0], wanted, rtol=1e-6)


@each_recipe
def test_augmentation_is_that_of_levit(name):
    cfg = load(name)
    levit = Config.fromfile(
        f'{mmpretrain.__path__[0]}/.mim/configs/_base_/datasets/imagenet_bs256_levit_224.py'
    )
    wanted = levit.train_pipeline
    load_image, crop, _, augment, erase, _ = wanted
    load_image.update(imdecode_backend='pillow', color_type='color_ignore_orientation')
    crop.scale = size_of(name)
    normalisation = dict(levit.data_preprocessor, num_classes=cfg.model.head.num_classes)
    if 'cifar' in name:  # RGB arrays, whereas OpenCV's images are BGR
        del wanted[0]
        normalisation['to_rgb'] = False
        augment.hparams.pad_val.reverse()
        erase.update(fill_color=erase.fill_color[::-1], fill_std=erase.fill_std[::-1])
    (dataset,) = find_datasets(cfg.train_dataloader.dataset)
    assert dataset.pipeline == wanted and cfg.data_preprocessor == normalisation
    mixup, cutmix = cfg.model.train_cfg.augments
    assert mixup == dict(type='Mixup', alpha=0.8) and cutmix == dict(type='CutMix', alpha=1.0)
    smoothing = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    assert cfg.model.head.loss == smoothing


def test_flowers_repeats_its_images_100_times_as_the_released_loader_does():
    dataset = load('evit_m5_flowers').train_dataloader.dataset
    assert (dataset.type, dataset.times) == ('RepeatDataset', 100)


def test_distillation_is_hard_with_weight_one_half():
    model = load(DISTILLED).model
    assert model.type == 'DistilledImageClassifier' and model.head.distillation
    assert (model.distillation_type, model.distillation_weight) == ('hard', 0.5)
    assert model.teacher.model_name.startswith('regnety_160.') and model.teacher.pretrained


@each_recipe
def test_evaluation_is_on_the_held_out_split_by_top1(name):
    cfg = load(name)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    assert cfg.val_evaluator.type == 'Accuracy' and 1 in cfg.val_evaluator.topk
    (train,), held_out = find_datasets(cfg.train_dataloader.dataset), cfg.val_dataloader.dataset
    assert train.type == held_out.type and train.data_root == held_out.data_root
    has_val = train.type in ('Flowers102', 'OxfordIIITPet')
    assert train.split == ('trainval' if has_val else 'train')
    assert held_out.split == ('val' if train.type == 'ImageNet' else 'test')
