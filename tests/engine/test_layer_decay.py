import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError

NO_DECAY = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    custom_keys=dict(attention_biases=dict(decay_mult=0.0)),
)


OURS = 'LayerDecayOptimWrapperConstructor'


def groups_by_name(model, constructor=OURS, **paramwise_cfg):
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    cfg = dict(constructor=constructor, optimizer=optimizer, paramwise_cfg=paramwise_cfg)
    optim_wrapper = build_optim_wrapper(model, cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }


def build(config):
    cfg = Config.fromfile(f'configs/{config}.py')
    if 'teacher' in cfg.model:
        cfg.model.teacher.update(model_name='resnet10t', pretrained=False)
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmpretrain':
        cfg.model.data_preprocessor = cfg.data_preprocessor
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('config', ['evit_m0_in1k', 'retinanet_evit_m4_digits'])
def test_groups_hold_all_parameters_of_the_settings_that_mmengine_gives_them(config):
    model = build(config)
    theirs = groups_by_name(model, 'DefaultOptimWrapperConstructor', **NO_DECAY)
    ours = groups_by_name(model, 'GroupedOptimWrapperConstructor', **NO_DECAY)
    assert ours == theirs
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    cfg = dict(constructor='GroupedOptimWrapperConstructor', paramwise_cfg=NO_DECAY)
    groups = build_optim_wrapper(model, dict(cfg, optimizer=optimizer)).param_groups
    # Of norms, biases and attention biases, and the rest, some with custom keys.
    assert len(groups) <= 4 < len(theirs)


def test_shared_parameters_are_updated_once_a_step():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(layer, nn.Sequential(layer))
    expected = copy.deepcopy(model)
    cfg = dict(constructor='GroupedOptimWrapperConstructor', paramwise_cfg=NO_DECAY)
    optimizer = dict(type='AdamW', lr=0.1, weight_decay=0.05)
    ours = build_optim_wrapper(model, dict(cfg, optimizer=optimizer))
    ours.update_params(model(torch.ones(1, 4)).sum())
    expected(torch.ones(1, 4)).sum().backward()
    torch.optim.AdamW(expected.parameters(), lr=0.1, weight_decay=0.05).step()
    assert torch.equal(layer.weight, expected[0].weight)


@pytest.mark.parametrize('arch', ['m0', 'm5'])
def test_layer_depths_follow_the_forward_order(arch):
    backbone = EfficientViT(arch)
    passed = []
    layers = [backbone.stem, *(layer for stage in backbone.stages for layer in stage)]
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: passed.append(module))
    backbone.eval()(torch.rand(1, 3, 64, 64))
    assert passed == layers
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    for depth, layer in enumerate(passed):
        for parameter in layer.parameters():
            name = names.pop(id(parameter))
            assert backbone.get_layer_depth(name) == (depth, len(passed) + 1)
    assert not names
    assert backbone.get_layer_depth('neck.conv.weight', 'backbone.')[0] == len(passed)
    assert backbone.get_layer_depth('head.weight')[0] == len(passed)


@pytest.mark.parametrize('config', ['evit_m0_in1k', 'evit_m4_in1k-distill-1000e'])
def test_groups_of_a_classifier_equal_those_of_mmpretrain(config):
    model = build(config)
    settings = dict(layer_decay_rate=0.7, **NO_DECAY)
    theirs = groups_by_name(model, 'LearningRateDecayOptimWrapperConstructor', **settings)
    ours = groups_by_name(model, **settings)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name] == pytest.approx(wanted), name


@pytest.mark.parametrize('config', ['retinanet_evit_m4_digits', 'semantic-fpn_evit_m4_digits'])
def test_learning_rates_of_detectors_and_segmentors_decay_by_layer(config):
    model = build(config)
    custom_keys = {'stages.2': dict(lr_mult=0.5)}
    groups = groups_by_name(model, layer_decay_rate=0.8, custom_keys=custom_keys)
    for name, (rate, _) in groups.items():
        if not name.startswith('backbone.'):
            assert rate == 1e-3
    rates = {
        'backbone.stem.0.conv.weight': 0.8**9,
        'backbone.stages.0.0.attention.branch.attention.attention_biases': 0.8**8,
        'backbone.stages.1.0.expand.conv.weight': 0.8**7,
        'backbone.stages.1.2.ffn1.branch.expand.conv.weight': 0.8**5,
        'backbone.stages.2.3.ffn1.branch.reduce.conv.weight': 0.8 * 0.5,
    }
    for name, scale in rates.items():
        assert groups[name][0] == pytest.approx(1e-3 * scale), name


@pytest.mark.parametrize('rate', [None, 0, 1.5])
def test_missing_or_invalid_decay_rate_raises_config_error(rate):
    with pytest.raises(ConfigError, match='above 0 and at most 1'):
        groups_by_name(nn.Linear(1, 1), layer_decay_rate=rate)


def test_optimizer_without_lr_raises_config_error():
    paramwise_cfg = dict(layer_decay_rate=0.8)
    cfg = dict(constructor=OURS, optimizer=dict(type='AdamW'), paramwise_cfg=paramwise_cfg)
    with pytest.raises(ConfigError, match='has no lr'):
        build_optim_wrapper(nn.Linear(1, 1), cfg)


def test_model_without_layer_depths_raises_config_error():
    with pytest.raises(ConfigError, match='backbone of Linear is NoneType'):
        groups_by_name(nn.Linear(1, 1), layer_decay_rate=0.8)
