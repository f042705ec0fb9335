import copy
import functools

import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from needing import needs_scaler
from timm.utils.agc import adaptive_clip_grad

from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError


@pytest.fixture
def on_cpu(monkeypatch):
    """Enable loss scaling on CPUs, which PyTorch supports but mmengine rejects."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
        scaler = functools.partial(torch.amp.GradScaler, 'cpu')
        monkeypatch.setattr(amp, 'GradScaler', scaler)


def make_wrapper(model, kind='AdaptiveClipOptimWrapper', clip_factor=0.02, **kwargs):
    return build_optim_wrapper(
        model,
        ConfigDict(
            type=kind,
            optimizer=dict(type='SGD', lr=1.0, weight_decay=0.0),
            clip_grad=dict(clip_factor=clip_factor),
            paramwise_cfg=dict(norm_decay_mult=0.0),
            **kwargs,
        ),
    )


def loss_of(model, images):
    return sum(feature.square().sum() for feature in model(images))


def steps_by_timm(model, losses, clip_factor=0.02):
    """Weights after one step of SGD on the mean of some losses, clipped by timm."""
    model = copy.deepcopy(model)
    for images in losses:
        (loss_of(model, images) / len(losses)).backward()
    adaptive_clip_grad(model.parameters(), clip_factor)
    with torch.no_grad():
        return {name: p - p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_weights(model, wanted):
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.fixture
def model(randomised):
    return randomised('m0').eval()


@pytest.fixture
def batches():
    return [torch.randn(2, 3, 64, 64) for _ in range(3)]


def test_step_equals_that_of_timm(model, batches):
    wrapper = make_wrapper(model)
    wanted = steps_by_timm(model, batches[:1])
    wrapper.update_params(loss_of(model, batches[0]))
    assert_weights(model, wanted)


def test_clipped_gradient_equals_the_formula_of_the_paper():
    convolution = torch.nn.Conv2d(3, 8, 3).double()
    wrapper = make_wrapper(convolution, clip_factor=0.1)
    weight, bias = (p.detach().clone() for p in convolution.parameters())
    (convolution(torch.randn(2, 3, 9, 9).double()) * torch.rand(8, 1, 1)).sum().backward()
    gradient = convolution.weight.grad.clone()
    wrapper.step()
    for unit in range(8):
        limit = 0.1 * max(weight[unit].square().sum().sqrt(), 1e-3)
        norm = gradient[unit].square().sum().sqrt()
        clipped = gradient[unit] * min(1, limit / norm)
        torch.testing.assert_close(weight[unit] - convolution.weight[unit], clipped)
    # A bias is one unit as a whole.
    step = (bias - convolution.bias).square().sum().sqrt()
    torch.testing.assert_close(step, 0.1 * bias.square().sum().sqrt())


def test_accumulated_gradients_are_clipped_once(model, batches):
    wrapper = make_wrapper(model, accumulative_counts=3)
    wanted = steps_by_timm(model, batches)
    before = copy.deepcopy(dict(model.named_parameters()))
    for batch in batches[:2]:
        wrapper.update_params(loss_of(model, batch))
    assert_weights(model, before)
    wrapper.update_params(loss_of(model, batches[2]))
    assert_weights(model, wanted)


@needs_scaler
def test_scaled_gradients_are_clipped_after_unscaling(on_cpu, model, batches):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model, batches = model.to(device), [batch.to(device) for batch in batches]
    wrapper = make_wrapper(
        model, 'AdaptiveClipAmpOptimWrapper', loss_scale=2.0**10, accumulative_counts=3
    )
    wanted = steps_by_timm(model, batches)
    for batch in batches:
        wrapper.update_params(loss_of(model, batch))
    assert_weights(model, wanted)


@needs_scaler
def test_step_with_infinite_gradients_is_skipped_in_mixed_precision(on_cpu, model, batches):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model, batch = model.to(device), batches[0].to(device)
    wrapper = make_wrapper(model, 'AdaptiveClipAmpOptimWrapper')
    before = copy.deepcopy(dict(model.named_parameters()))
    wrapper.update_params(loss_of(model, batch) * float('inf'))
    assert_weights(model, before)


def test_frozen_weights_do_not_change(batches):
    model = EfficientViT('m0', frozen_stages=1)
    frozen = model.stem[0].conv.weight.clone()
    wrapper = make_wrapper(model)
    wrapper.update_params(loss_of(model, batches[0]))
    assert torch.equal(model.stem[0].conv.weight, frozen)


@pytest.mark.parametrize(
    'clip_grad',
    [None, {}, dict(max_norm=1.0), dict(clip_factor=-0.02), dict(clip_factor=0.02, max_norm=1.0)],
)
def test_invalid_settings_raise_config_error(model, clip_grad):
    cfg = ConfigDict(type='AdaptiveClipOptimWrapper', optimizer=dict(type='SGD', lr=1.0))
    with pytest.raises(ConfigError, match='Set clip_factor, above 0'):
        build_optim_wrapper(model, ConfigDict(cfg, clip_grad=clip_grad))
