import copy
import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from mmevit.engine.hooks import MAX_OVERFLOWS, InvalidLossHook
from mmevit.engine.optim_wrappers import train_in_bfloat16
from mmevit.models import EfficientViT
from mmevit.models.layers import ConvNorm
from mmevit.utils.errors import UserError


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        arch = dict(embed_dims=(32,), depths=(1,), num_heads=(2,), kernel_sizes=(5, 3))
        self.backbone = EfficientViT(arch, window_sizes=(7,), out_indices=(0,))
        self.head = nn.Linear(32, 10)

    def loss(self, images, labels):
        scores = self.head(self.backbone(images)[0].mean((2, 3)))
        return nn.functional.cross_entropy(scores.float(), labels), scores.dtype


@pytest.fixture
def batches():
    return [(torch.randn(8, 3, 64, 64), torch.arange(8)) for _ in range(4)]


def make_wrapper(model, kind, **kwargs):
    optimizer = dict(type='AdamW', lr=1e-3)
    return build_optim_wrapper(model, ConfigDict(type=kind, optimizer=optimizer, **kwargs))


def train(model, batches, kind, **kwargs):
    """Train a copy; return it, the losses of each step and the dtypes of the logits."""
    model = copy.deepcopy(model)
    wrapper = make_wrapper(model, kind, **kwargs)
    losses, types = [], set()
    for images, labels in batches:
        with wrapper.optim_context(model):
            loss, dtype = model.loss(images, labels)
        wrapper.update_params(loss)
        losses.append(loss.item())
        types.add(dtype)
    return model, torch.tensor(losses), types


@pytest.mark.parametrize(
    ('prefix', 'settings'),
    [
        ('', {}),
        ('', dict(accumulative_counts=2, clip_grad=dict(max_norm=1.0))),
        ('AdaptiveClip', dict(accumulative_counts=2, clip_grad=dict(clip_factor=0.02))),
    ],
    ids=['plain', 'accumulated', 'adaptive'],
)
def test_losses_in_bfloat16_are_close_to_float32(batches, prefix, settings):
    model = Classifier()
    exact, wanted, types = train(model, batches, f'{prefix}OptimWrapper', **settings)
    assert types == {torch.float32}
    mixed, losses, types = train(model, batches, f'{prefix}Bfloat16OptimWrapper', **settings)
    assert types == {torch.bfloat16}
    # bfloat16 has 8 bits: 2**-8 is the rounding of one number.
    torch.testing.assert_close(losses, wanted, rtol=2**-6, atol=0)
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    for before, one, other in zip(*(m.parameters() for m in (model, mixed, exact)), strict=True):
        assert torch.equal(one, before) == torch.equal(other, before)


def test_strided_depthwise_convolution_has_gradients_of_float32_on_a_cpu():
    layer = ConvNorm(16, 16, 3, stride=2, groups=16, norm_cfg=dict(type='GN', num_groups=2))
    images = torch.randn(2, 16, 32, 32).bfloat16()
    layer(images.float()).square().sum().backward()
    wanted, layer.conv.weight.grad = layer.conv.weight.grad, None
    with make_wrapper(layer, 'Bfloat16OptimWrapper').optim_context(layer):
        layer(images).square().sum().backward()
    assert torch.equal(layer.conv.weight.grad, wanted)


def test_accumulated_gradients_update_once_in_bfloat16(batches):
    model = Classifier()
    wrapper = make_wrapper(model, 'Bfloat16OptimWrapper', accumulative_counts=2)
    before = model.head.weight.detach().clone()
    for index, (images, labels) in enumerate(batches[:2]):
        assert torch.equal(model.head.weight, before)
        with wrapper.optim_context(model):
            wrapper.update_params(model.loss(images, labels)[0])
        assert index == 0 or not torch.equal(model.head.weight, before)


def test_state_of_a_gpu_run_in_mixed_precision_is_loaded():
    model = Classifier()
    state = make_wrapper(model, 'OptimWrapper').state_dict()
    state['loss_scaler'] = dict(scale=65536.0)
    wrapper = make_wrapper(model, 'Bfloat16OptimWrapper')
    wrapper.load_state_dict(state)
    assert 'loss_scaler' not in wrapper.state_dict()


@pytest.mark.parametrize(
    ('kind', 'stand_in'),
    [
        ('AmpOptimWrapper', 'Bfloat16OptimWrapper'),
        ('mmengine.AmpOptimWrapper', 'Bfloat16OptimWrapper'),
        (AmpOptimWrapper, 'Bfloat16OptimWrapper'),
        ('AdaptiveClipAmpOptimWrapper', 'AdaptiveClipBfloat16OptimWrapper'),
    ],
)
def test_wrappers_with_loss_scaling_are_replaced_and_keep_their_settings(kind, stand_in):
    rest = dict(clip_grad=dict(clip_factor=0.02), accumulative_counts=4)
    amp = dict(type=kind, dtype='bfloat16', loss_scale='dynamic')
    cfg = ConfigDict(optim_wrapper=dict(**amp, **rest))
    train_in_bfloat16(cfg)
    assert cfg.optim_wrapper == dict(type=stand_in, **rest)


def test_other_wrappers_are_not_replaced():
    for cfg in (dict(optim_wrapper=dict(type='OptimWrapper')), dict(), dict(optim_wrapper=None)):
        cfg = ConfigDict(cfg)
        before = copy.deepcopy(cfg)
        train_in_bfloat16(cfg)
        assert cfg == before


def test_two_accumulated_half_batches_equal_one_batch(batches):
    model = Classifier().double()
    model.backbone.eval()  # the statistics of batch norm are of what it sees at a time
    whole, halves = [], []
    for images, labels in batches:
        whole.append((images.double(), labels))
        halves += zip(images.double().split(4), labels.split(4), strict=True)
    expected, _, _ = train(model, whole, 'OptimWrapper')
    actual, _, _ = train(model, halves, 'OptimWrapper', accumulative_counts=2)
    for ours, wanted in zip(actual.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-9)


@pytest.fixture
def make_scaled(monkeypatch):
    """Make mmengine's wrapper for float16, with PyTorch's scaler for CPUs."""
    scaler = getattr(torch.amp, 'GradScaler', None)
    if scaler is None:
        pytest.skip('This PyTorch has no loss scaling on a CPU.')
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(scaler, 'cpu'))

    def make(**options):
        model = nn.Linear(2, 1)
        wrapper = make_wrapper(model, 'AmpOptimWrapper', **options)
        runner = SimpleNamespace(
            optim_wrapper=wrapper,
            iter=0,
            epoch=0,
            logger=logging.getLogger('test'),
            message_hub=SimpleNamespace(runtime_info={}),
        )
        hook = InvalidLossHook()

        def step(factor, gradient=1.0):
            """Train with a loss and a gradient multiplied by factors that may be infinite."""
            loss = model(torch.ones(1, 2)).sum().exp()
            loss.register_hook(lambda value: value * gradient)
            loss = loss * factor
            wrapper.update_params(loss)
            hook.after_train_iter(runner, runner.iter, {}, dict(loss=loss.detach()))
            runner.iter += 1
            return wrapper.loss_scaler.get_scale()

        return model, step

    return make


def test_overflow_skipped_by_loss_scaling_does_not_stop_training(make_scaled):
    model, step = make_scaled(loss_scale='dynamic')
    assert step(1.0) == 2**16
    before = model.weight.detach().clone()
    assert step(float('inf')) == 2**15
    assert torch.equal(model.weight, before)
    assert step(1.0) == 2**15
    assert not torch.equal(model.weight, before)


def test_consecutive_overflows_stop_training(make_scaled):
    _, step = make_scaled(loss_scale='dynamic')
    for number in range(MAX_OVERFLOWS):
        assert step(float('nan')) == 2.0 ** (15 - number)
    with pytest.raises(UserError, match=f'not finite in iteration {MAX_OVERFLOWS + 1} of epoch 1'):
        step(float('nan'))


@pytest.mark.parametrize('options', [dict(loss_scale=512.0), dict(dtype='bfloat16')], ids=str)
def test_invalid_loss_stops_training_without_dynamic_loss_scaling(make_scaled, options):
    _, step = make_scaled(**options)
    with pytest.raises(UserError, match='not finite in iteration 1'):
        step(float('inf'))


def test_overflow_in_every_step_stops_training(make_scaled):
    _, step = make_scaled(loss_scale='dynamic')
    for _ in range(30):
        step(1.0, gradient=float('inf'))
    with pytest.raises(UserError, match='loss scale has fallen to 3.*gradients overflow in every'):
        step(1.0, gradient=float('inf'))
