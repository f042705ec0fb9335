import copy
import functools
import math
import shutil
from pathlib import Path

import making_datasets
import mmpretrain
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
from mmevit.utils.configs import find_datasets

LAST_WIDTHS = dict(m0=192, m1=192, m2=224, m3=320, m4=384, m5=384)
LARGE = {'evit_m5_in1k-384': 384, 'evit_m5_in1k-512': 512}
DISTILLED = 'evit_m4_in1k-distill-1000e'
NUM_CLASSES = dict(cifar10=10, cifar100=100, cars=196, flowers=102, pets=37)
TRANSFER = tuple(f'evit_m5_{data}' for data in NUM_CLASSES)
AVERAGED = ('evit_m5_in1k', *LARGE, DISTILLED)
# One config for each recipe. The others differ only in their network, which a test below checks.
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


def test_every_result_of_the_paper_has_a_tested_config():
    found = {path.stem for path in Path('configs').glob('evit_*.py')}
    networks = {f'evit_{arch}_{data}' for arch in LAST_WIDTHS for data in ('in1k', *NUM_CLASSES)}
    # tools/finetune.py completes evit_m5_finetune.
    assert found - {'evit_m5_finetune'} == {*networks, *RECIPES, DIGITS}


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
    """A folder that is deleted after the test, with its large checkpoints."""
    yield tmp_path / 'work'
    shutil.rmtree(tmp_path / 'work', ignore_errors=True)


class StopAfter(Hook):
    """Stop the run early; the schedules remain those of the full run."""

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
        # mmpretrain's tools set the collate function.
        dataloader.update(num_workers=0, collate_fn=dict(type='default_collate'))
        for dataset in find_datasets(dataloader.dataset):
            dataset.data_root = str(root)
    if cfg.train_dataloader.dataset.type == 'RepeatDataset':
        cfg.train_dataloader.dataset.times = 1
    return Runner.from_cfg(cfg)


SMALLEST = tuple(f'evit_m0_{data}' for data in ('in1k', *NUM_CLASSES))
SLOW = pytest.param('evit_m5_in1k-512', marks=pytest.mark.slow)


@pytest.mark.parametrize('name', [*SMALLEST, 'evit_m5_in1k-384', SLOW, DISTILLED, DIGITS])
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
        dataset = dataloader.dataset
        labels = getattr(dataset, 'dataset', dataset).get_gt_labels()
        assert labels.min() == 0 and labels.max() == cfg.model.head.num_classes - 1
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2 and np.isfinite(losses).all()
    # A fraction of the images, of which there are few.
    top1 = runner.message_hub.get_scalar('val/accuracy/top1').current()
    correct = top1 / 100 * len(runner.val_dataloader.dataset)
    assert correct == pytest.approx(round(correct), abs=1e-3)
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


def test_averaged_weights_are_evaluated_and_saved(roots, work_dir):
    cfg = load('evit_m0_in1k')
    cfg.custom_hooks[0].momentum = 0.5
    cfg.param_scheduler = None  # at the initial 1e-6, weights would hardly change
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


@pytest.mark.parametrize('data', ['in1k', *NUM_CLASSES])
def test_models_of_a_recipe_differ_only_in_their_network(data):
    rest = []
    for arch, width in LAST_WIDTHS.items():
        cfg = load(f'evit_{arch}_{data}')
        backbone = cfg.model.backbone
        assert (backbone.pop('arch'), cfg.model.head.pop('in_channels')) == (arch, width)
        released = dict(type='Pretrained', checkpoint=f'evit://{arch}', prefix='backbone.')
        assert backbone.pop('init_cfg', None) == (None if data == 'in1k' else released)
        rest.append(cfg.to_dict())
    assert all(others == rest[0] for others in rest)


def test_only_imagenet_recipes_average_the_weights():
    average = dict(type='EMAHook', momentum=4e-5, update_buffers=True)
    for name in AVERAGED:
        assert [hook for hook in load(name).custom_hooks if hook.type == 'EMAHook'] == [average]
    for name in TRANSFER:
        assert 'EMAHook' not in [hook.type for hook in load(name).custom_hooks]


@pytest.mark.parametrize('arch', ['m0', 'm5'])
def test_timm_decays_the_same_weights(arch):
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


@pytest.mark.parametrize('name', [DISTILLED, 'evit_m5_in1k-384', 'evit_m0_cars'])
def test_other_recipes_do_not_decay_biases_and_norms(name):
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
    """A model with one layer, to test the schedule."""

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
    ('name', 'epochs', 'peak', 'last'),
    [
        ('evit_m5_in1k', 300, 1e-3, 1e-5),
        (DISTILLED, 1000, 1e-3, 1e-5),
        ('evit_m5_in1k-384', 30, 2e-5, 2e-7),
        ('evit_m5_in1k-512', 60, 2e-5, 2e-7),
    ],
)
def test_learning_rate_is_linear_warm_up_then_cosine(name, epochs, peak, last, work_dir):
    cfg = load(name)
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


@pytest.mark.parametrize('name', TRANSFER)
def test_transfer_has_the_schedule_of_imagenet(name):
    cfg, imagenet = load(name), load('evit_m5_in1k')
    assert cfg.param_scheduler == imagenet.param_scheduler and cfg.train_cfg == imagenet.train_cfg


def test_flowers_repeats_its_images_100_times_as_the_released_loader_does():
    dataset = load('evit_m5_flowers').train_dataloader.dataset
    assert (dataset.type, dataset.times) == ('RepeatDataset', 100)


@pytest.mark.parametrize('name', RECIPES)
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


@pytest.mark.parametrize('name', RECIPES)
def test_windows_and_weights_fit_the_image_size(name):
    model = load(name).model
    windows = {384: (12, 12, 6), 512: (16, 16, 8)}.get(size_of(name), (7, 7, 4))
    assert tuple(model.backbone.window_sizes) == windows
    released = dict(type='Pretrained', checkpoint='evit://m5') if name in LARGE else None
    assert model.get('init_cfg') == released


def test_distillation_is_hard_with_weight_one_half():
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
        (dataset,) = find_datasets(cfg[f'{split}_dataloader'].dataset)
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
    (train,), held_out = find_datasets(cfg.train_dataloader.dataset), cfg.val_dataloader.dataset
    assert train.type == held_out.type and train.data_root == held_out.data_root
    has_val = train.type in ('Flowers102', 'OxfordIIITPet')
    assert train.split == ('trainval' if has_val else 'train')
    assert held_out.split == ('val' if train.type == 'ImageNet' else 'test')


@pytest.mark.parametrize('name', RECIPES)
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
