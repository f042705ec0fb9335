import copy
import functools
import math
import shutil
from pathlib import Path

import making_datasets
import numpy as np
import pytest
import timm
import timm.optim
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, CIFAR100
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image

from mmevit.checkpoint import convert_names, read_checkpoint

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5')
IN1K = tuple(f'evit_{arch}_in1k' for arch in ARCHS)
LARGE = {'evit_m5_in1k-384': 384, 'evit_m5_in1k-512': 512}
DISTILLED = 'evit_m4_in1k-distill-1000e'
NUM_CLASSES = dict(cifar10=10, cifar100=100, cars=196, flowers=102, pets=37)
TRANSFER = tuple(f'evit_{arch}_{data}' for data in NUM_CLASSES for arch in ARCHS)
AVERAGED = (*IN1K, *LARGE, DISTILLED)
RECIPES = (*AVERAGED, *TRANSFER)
DIGITS = 'evit_m0_digits'


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
    return LARGE.get(name, 224)


def test_there_is_a_config_for_every_result_of_the_paper_and_each_is_tested():
    found = {path.stem for path in Path('configs').glob('evit_*.py')}
    # That one is not whole before tools/finetune.py fills it in.
    assert found - {'evit_m5_finetune'} == {*RECIPES, DIGITS}


# Whole runs


@pytest.fixture(scope='module')
def roots(tmp_path_factory, digits):
    """The folder of each data set, by the name that the configs have for it."""
    folder = tmp_path_factory.mktemp('sets')
    names = ('imagenet', *NUM_CLASSES)
    for name in names:
        getattr(making_datasets, f'make_{name}')(folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        making_datasets.accept_cifar(monkeypatch, CIFAR10, folder / 'cifar10')
        making_datasets.accept_cifar(monkeypatch, CIFAR100, folder / 'cifar100')
        sets = {name: folder / name for name in names}
        yield dict(sets, in1k=sets['imagenet'], digits=digits / 'classification')


@pytest.fixture
def work_dir(tmp_path):
    """A folder that does not keep hundreds of megabytes of checkpoints after the test."""
    yield tmp_path / 'work'
    shutil.rmtree(tmp_path / 'work', ignore_errors=True)


class StopAfter(Hook):
    """End the run before its 300 epochs, the schedules being those of the whole run."""

    def __init__(self, epochs):
        self.epochs = epochs

    def before_train(self, runner):
        self.initial = copy.deepcopy(runner.model.state_dict())

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = runner.epoch + 1 == self.epochs


def make_runner(cfg, root, work_dir):
    """Make a runner that starts from random weights and takes two images at a time."""
    cfg.work_dir = cfg.experiment_name = str(work_dir)
    cfg.randomness = dict(seed=0)
    cfg.model.init_cfg = cfg.model.backbone.init_cfg = None  # the released weights are not here
    if 'teacher' in cfg.model:
        cfg.model.teacher.update(model_name='resnet10t', pretrained=False)
    cfg.train_dataloader.batch_size = 2
    cfg.default_hooks.checkpoint.save_optimizer = False  # saves time
    cfg.train_cfg.val_interval = 1
    for split in ('train', 'val', 'test'):
        dataloader = cfg[f'{split}_dataloader']
        # mmpretrain's configs count on its tools for the collation.
        dataloader.update(num_workers=0, collate_fn=dict(type='default_collate'))
        dataloader.dataset.data_root = str(root)
    return Runner.from_cfg(cfg)


# The others of a recipe differ in their network alone, as a test below says.
FAST = (*(name for name in RECIPES if 'm0' in name), *LARGE, DISTILLED, DIGITS)
SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in RECIPES if name not in FAST)


@pytest.mark.parametrize('name', [*FAST, *SLOW])
def test_config_trains_evaluates_and_saves(name, roots, work_dir):
    cfg = load(name)
    root = roots[data_of(name)]
    if name == DIGITS:
        cfg.train_dataloader.dataset.update(indices=[0, 300, 600, 900, -1], data_prefix='train')
        cfg.val_dataloader.dataset.update(indices=[0, -1], data_prefix='val')
    runner = make_runner(cfg, root, work_dir)
    stop = StopAfter(epochs=1)
    runner.register_hook(stop)
    runner.train()

    assert (runner.epoch, runner.iter) == (1, 2)  # of five images, the last is dropped
    for dataloader in (runner.train_dataloader, runner.val_dataloader):
        labels = dataloader.dataset.get_gt_labels()
        assert labels.min() == 0 and labels.max() == cfg.model.head.num_classes - 1
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert 0 <= runner.message_hub.get_scalar('val/accuracy/top1').current() <= 100
    unchanged = {
        weight
        for weight, value in runner.model.named_parameters()
        if value.equal(stop.initial[weight])
    }
    assert not unchanged
    assert read_checkpoint(work_dir / 'epoch_1.pth')['meta']['epoch'] == 1
    assert (work_dir / 'best_accuracy_top1_epoch_1.pth').exists()


class Recorder(Hook):
    """Keep the weights after every iteration, and those that each evaluation saw."""

    def __init__(self):
        self.trained, self.evaluated = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.trained.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(copy.deepcopy(runner.model.state_dict()))


def average(history, momentum):
    """Average weights and float buffers by the formula, in double precision."""
    averages = {name: value.double() for name, value in history[0].items()}
    for weights in history[1:]:
        for name, value in weights.items():
            averages[name] = (1 - momentum) * averages[name] + momentum * value.double()
    return {name: averages[name] for name, value in history[0].items() if value.is_floating_point()}


def test_averaged_weights_are_the_ones_evaluated_and_saved(roots, work_dir):
    cfg = load('evit_m0_in1k')
    cfg.custom_hooks[0].momentum = 0.5
    cfg.param_scheduler = None  # from 1e-6 on there would be little to see
    runner = make_runner(cfg, roots['in1k'], work_dir)
    recorder = Recorder()
    runner.register_hook(recorder)
    runner.register_hook(StopAfter(epochs=3))
    runner.train()

    assert len(recorder.trained) == 6 and len(recorder.evaluated) == 3
    wanted = average(recorder.trained, 0.5)
    saved = read_checkpoint(work_dir / 'epoch_3.pth')
    for name, value in wanted.items():
        for found in (saved['state_dict'][name], recorder.evaluated[-1][name]):
            torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-7)
    last = recorder.trained[-1]
    assert all(saved['ema_state_dict'][f'module.{name}'].equal(last[name]) for name in last)
    assert all(value.equal(last[name]) for name, value in runner.model.state_dict().items())
    for name in ('backbone.stem.0.conv.weight', 'backbone.stem.0.norm.running_mean'):
        assert not torch.allclose(wanted[name], last[name].double(), rtol=0.01)
    best = next(work_dir.glob('best_accuracy_top1_epoch_*.pth'))
    evaluated = recorder.evaluated[int(best.stem.rpartition('_')[2]) - 1]
    best_weights = read_checkpoint(best)['state_dict']
    assert all(best_weights[name].equal(evaluated[name]) for name in wanted)


# Recipes


@pytest.mark.parametrize('name', [*IN1K, *TRANSFER])
def test_models_of_a_recipe_differ_in_their_network_alone(name):
    cfg, largest = load(name), load(f'evit_m5_{data_of(name)}')
    for model in (cfg.model, largest.model):
        for key in ('arch', 'init_cfg'):
            model.backbone.pop(key, None)
        del model.head.in_channels
    assert cfg.to_dict() == largest.to_dict()


def test_every_in1k_config_averages_as_the_recipe_says_and_transfer_does_not():
    average = dict(type='EMAHook', momentum=4e-5, update_buffers=True)
    for name in AVERAGED:
        assert [hook for hook in load(name).custom_hooks if hook.type == 'EMAHook'] == [average]
    for name in TRANSFER:
        assert 'EMAHook' not in [hook.type for hook in load(name).custom_hooks]


@pytest.mark.parametrize('arch', ARCHS)
def test_weight_decay_is_on_the_weights_that_timm_has_it_on(arch):
    cfg = load(f'evit_{arch}_in1k')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group['lr'] for group in optimizer.param_groups} == {1e-3}

    reference = timm.create_model(f'efficientvit_{arch}')
    weights = convert_names(reference.state_dict(keep_vars=True), 'mmevit')
    names = {value: name for name, value in weights.items()}
    groups = timm.optim.param_groups_weight_decay(
        reference, 0.025, no_weight_decay_list=reference.no_weight_decay()
    )
    wanted = {
        names[parameter]: group['weight_decay'] for group in groups for parameter in group['params']
    }
    assert found == wanted and set(wanted.values()) == {0, 0.025}


@pytest.mark.parametrize('name', [DISTILLED, *LARGE, 'evit_m0_cars', 'evit_m5_cifar10'])
def test_weight_decay_spares_biases_and_norms_in_the_other_recipes_too(name):
    cfg = load(name)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [(group, p) for group in optimizer.param_groups for p in group['params']]
    assert {p for _, p in groups} == set(model.parameters())
    decay = 0.025 if name == DISTILLED else 1e-8
    for group, parameter in groups:
        name = names[parameter]
        spared = parameter.ndim == 1 or name.endswith('attention_biases')
        assert group['weight_decay'] == (0 if spared else decay), name


@pytest.mark.parametrize('name', RECIPES)
def test_optimizer_and_batch_follow_the_recipe(name):
    cfg = load(name)
    lr, decay, batch = 1e-3, 0.025, 2048
    if name in LARGE:
        lr, decay, batch = 2e-5, 1e-8, 512
    elif name in TRANSFER:
        decay, batch = 1e-8, 256
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'AdaptiveClipOptimWrapper'
    assert wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=decay)
    assert wrapper.clip_grad == dict(clip_factor=0.02)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    sampler = cfg.train_dataloader.sampler
    assert (sampler.type, sampler.num_repeats) == ('RepeatAugSampler', 3)


class Probe(BaseModel):
    """A model of one layer, for a run in which the schedule is what counts."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, images, mode):
        return dict(loss=self.layer(images).mean())


class Rates(Hook):
    """Keep the learning rate of every iteration."""

    def before_train(self, runner):
        self.values = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        (rate,) = {group['lr'] for group in runner.optim_wrapper.optimizer.param_groups}
        self.values.append(rate)


def warm_up_and_cosine(step, epochs, peak, last, epoch_length):
    """The rate of an iteration: five epochs linearly from peak / 1000, then a cosine."""
    warm_up = 5 * epoch_length
    if step < warm_up:
        # mmengine is at the peak one iteration before the end of the warm-up.
        return peak / 1000 + (peak - peak / 1000) * step / (warm_up - 1)
    progress = (step - warm_up) / ((epochs - 5) * epoch_length)
    return last + (peak - last) * (1 + math.cos(math.pi * progress)) / 2


@pytest.mark.parametrize(
    ('names', 'epochs', 'peak', 'last'),
    [
        (IN1K, 300, 1e-3, 1e-5),
        (TRANSFER, 300, 1e-3, 1e-5),
        ([DISTILLED], 1000, 1e-3, 1e-5),
        (['evit_m5_in1k-384'], 30, 2e-5, 2e-7),
        (['evit_m5_in1k-512'], 60, 2e-5, 2e-7),
    ],
    ids=['in1k', 'transfer', 'distilled', '384', '512'],
)
def test_learning_rate_warms_up_and_falls_as_a_cosine(names, epochs, peak, last, work_dir):
    cfg = load(names[0])
    for name in names:
        other = load(name)
        assert other.param_scheduler == cfg.param_scheduler and other.train_cfg == cfg.train_cfg
    runner = Runner(
        model=Probe(),
        work_dir=str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(
            [dict(images=torch.rand(1))] * 4, batch_size=2
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=10**6)),
        default_scope='mmpretrain',
        experiment_name=str(work_dir),
    )
    rates = Rates()
    runner.register_hook(rates)
    runner.train()

    assert len(rates.values) == 2 * epochs
    wanted = [warm_up_and_cosine(step, epochs, peak, last, 2) for step in range(2 * epochs)]
    assert rates.values == pytest.approx(wanted, rel=1e-6)
    if epochs == 300:
        for epoch, rate in {0: 1e-6, 5: 1e-3, 150: 5.18e-4, 299: 1.003e-5}.items():
            assert rates.values[2 * epoch] == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize('name', RECIPES)
def test_augmentation_follows_the_recipe(name):
    cfg = load(name)
    steps = list(cfg.train_dataloader.dataset.pipeline)
    for step in steps:
        step.pop('_scope_', None)
    if 'cifar' not in name:
        as_it_is = dict(imdecode_backend='pillow', color_type='color_ignore_orientation')
        assert steps.pop(0) == dict(type='LoadImageFromFile', **as_it_is)
    crop, flip, augment, erase, pack = steps
    bicubic = dict(backend='pillow', interpolation='bicubic')
    assert crop == dict(type='RandomResizedCrop', scale=size_of(name), **bicubic)
    assert flip == dict(type='RandomFlip', prob=0.5, direction='horizontal')
    assert pack == dict(type='PackInputs')
    assert augment.type == 'RandAugment' and augment.policies == 'timm_increasing'
    assert (augment.num_policies, augment.total_level) == (2, 10)
    assert (augment.magnitude_level, augment.magnitude_std) == (9, 0.5)
    assert augment.hparams.interpolation == 'bicubic'
    assert (erase.type, erase.erase_prob, erase.mode) == ('RandomErasing', 0.25, 'rand')
    assert (erase.min_area_ratio, erase.max_area_ratio) == (0.02, 1 / 3)

    # What is filled in has the channel order of the images: OpenCV's, but that of CIFAR is RGB.
    order = 1 if 'cifar' in name else -1
    assert cfg.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.data_preprocessor.to_rgb == (order == -1)
    assert augment.hparams.pad_val == [124, 116, 104][::order]
    assert erase.fill_color == cfg.data_preprocessor.mean[::order]
    assert erase.fill_std == cfg.data_preprocessor.std[::order]

    mixup, cutmix = cfg.model.train_cfg.augments
    assert mixup == dict(type='Mixup', alpha=0.8) and cutmix == dict(type='CutMix', alpha=1.0)
    smoothing = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
    assert cfg.model.head.loss == smoothing


@pytest.mark.parametrize('name', RECIPES)
def test_network_starts_where_its_recipe_says(name):
    model = load(name).model
    arch = name.split('_')[1]
    assert model.backbone.arch == arch
    windows = {384: (12, 12, 6), 512: (16, 16, 8)}.get(size_of(name), (7, 7, 4))
    assert tuple(model.backbone.window_sizes) == windows
    whole = dict(type='Pretrained', checkpoint=f'evit://{arch}')
    backbone = dict(whole, prefix='backbone.')
    assert model.get('init_cfg') == (whole if name in LARGE else None)
    assert model.backbone.get('init_cfg') == (backbone if name in TRANSFER else None)


def test_distilled_config_learns_half_from_the_labels_of_the_teacher():
    model = load(DISTILLED).model
    assert model.type == 'DistilledImageClassifier' and model.head.distillation
    assert (model.distillation_type, model.distillation_weight) == ('hard', 0.5)
    assert model.teacher.model_name.startswith('regnety_160.') and model.teacher.pretrained


@pytest.mark.parametrize('name', [*RECIPES, DIGITS])
def test_head_has_the_classes_of_the_data(name):
    cfg = load(name)
    wanted = NUM_CLASSES.get(data_of(name), 10 if name == DIGITS else 1000)
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == wanted
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        known = {**DATASETS.get(dataset.type).METAINFO, **dataset.get('metainfo', {})}
        # mmpretrain knows no names for the flowers.
        assert dataset.type == 'Flowers102' or len(known['classes']) == wanted


# Evaluation


@pytest.mark.parametrize('name', RECIPES)
def test_evaluation_is_on_the_held_out_split_by_top1(name):
    cfg = load(name)
    assert cfg.val_dataloader == cfg.test_dataloader
    assert cfg.val_evaluator == cfg.test_evaluator
    assert cfg.val_evaluator.type == 'Accuracy' and 1 in cfg.val_evaluator.topk
    train, held_out = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert train.type == held_out.type and train.data_root == held_out.data_root
    has_val = train.type in ('Flowers102', 'OxfordIIITPet')
    assert train.split == ('trainval' if has_val else 'train')
    assert held_out.split == ('val' if train.type == 'ImageNet' else 'test')


@pytest.mark.parametrize('name', [*AVERAGED, *(f'evit_m5_{data}' for data in NUM_CLASSES)])
def test_evaluation_sees_images_as_timm_prepares_them(name, roots):
    cfg = load(name)
    dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'data_root': str(roots[data_of(name)])})
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', **cfg.data_preprocessor))
    size = size_of(name)
    whole_image = name in (*LARGE, *TRANSFER)  # made square
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
