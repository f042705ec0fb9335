from functools import partial

import pytest
import timm
import torch
from making_models import TINY
from mmpretrain.models import SwinTransformer, VisionTransformer
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

from mmevit.analysis.importance import channel_importance, count_params, prune, shares_kept
from mmevit.analysis.prunable import (
    PrunableAttention,
    PrunableCascadedAttention,
    PrunableFFN,
    find_prunable,
)
from mmevit.benchmark.measuring import count_macs
from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError

KINDS = ('query', 'key', 'value')
NETWORKS = {
    'ours': partial(EfficientViT, TINY),
    'swin': partial(
        SwinTransformer,
        arch=dict(embed_dims=24, depths=[1, 2], num_heads=[2, 4]),
        out_indices=(1,),
        pad_small_map=True,
    ),
    'vit': partial(
        VisionTransformer,
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
        img_size=64,
    ),
    'timm vit': partial(
        timm.create_model, 'deit_tiny_patch16_224', img_size=64, embed_dim=24, depth=2
    ),
    'timm swin': partial(
        timm.create_model, 'swin_tiny_patch4_window7_224', img_size=64, embed_dim=24, depths=(1, 2)
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    network = NETWORKS[request.param]()
    for name, value in network.named_parameters():
        if value.dim() == 1 and 'norm' in name and name.endswith('weight'):
            nn.init.uniform_(value, 0.5, 1.5)
        elif 'bias' in name:
            nn.init.normal_(value, std=0.3)
    network.eval()
    return network


@pytest.fixture
def ours():
    return NETWORKS['ours']().eval()


def last_output(network, images):
    outputs = network(images)
    return outputs[-1] if isinstance(outputs, tuple) else outputs


def loss(network, batch):
    images, target = batch
    return F.mse_loss(last_output(network, images), target)


def make_batches(network, number=2):
    images = torch.randn(number, 1, 3, 64, 64)
    with torch.no_grad():
        targets = [torch.randn_like(last_output(network, image)) for image in images]
    return list(zip(images, targets, strict=True))


def gate(prunable, kind, head, channel, factor):
    """Multiply one channel by a factor where it is computed; return the handle of the hook."""
    if isinstance(prunable, PrunableFFN):
        axis = -1 if isinstance(prunable.second, nn.Linear) else 1
        return prunable.second.register_forward_pre_hook(
            lambda module, args: scale(args[0], channel, factor, axis)
        )
    attention, position = prunable.attention, KINDS.index(kind)
    if isinstance(prunable, PrunableAttention):
        width = attention.qkv.out_features // 3 // attention.num_heads
        layer, start, axis = attention.qkv, (position * attention.num_heads + head) * width, -1
    else:
        layers = attention.query_convs if kind == 'query' else attention.qkvs
        layer, start, axis = layers[head], 16 * position, 1
    return layer.register_forward_hook(
        lambda module, args, output: scale(output, start + channel, factor, axis)
    )


def scale(x, channel, factor, axis):
    factors = torch.ones(x.shape[axis], dtype=x.dtype)
    factors[channel] = factor
    return x * (factors if axis == -1 else factors.view(-1, 1, 1))


def test_importance_is_the_squared_derivative_of_a_gate_on_the_channel(network):
    batches = [(images.double(), target.double()) for images, target in make_batches(network)]
    network.double()
    importance = channel_importance(network, batches, loss)
    prunables = find_prunable(network)
    assert sum(isinstance(prunable, PrunableFFN) for prunable in prunables.values()) > 1
    for name, prunable in prunables.items():
        for kind, values in importance[name].items():
            head, channel = values.shape[0] - 1, values.shape[1] // 2
            ends = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                handle = gate(prunable, kind, head, channel, factor)
                with torch.no_grad():
                    ends.append(torch.stack([loss(network, batch) for batch in batches]))
                handle.remove()
            expected = ((ends[0] - ends[1]) / 2e-5).square().mean().item()
            assert values[head, channel].item() == pytest.approx(expected, rel=1e-4, abs=1e-14)


@pytest.mark.parametrize('share', [0.9, 0.8])
def test_pruned_network_equals_the_network_with_these_channels_set_to_zero(network, share):
    importance = channel_importance(network, make_batches(network), loss)
    budget = round(share * count_params(network))
    pruned, kept = prune(network, importance, budget)
    expected_params, largest = count_params(network), 0
    for name, prunable in find_prunable(network).items():
        for kind, left in kept[name].items():
            each = params_per_channel(prunable, kind)
            num_channels = importance[name][kind].shape[1]
            expected_params -= (num_channels - left.shape[1]) * each
            largest = max(largest, each)
            for head, index in enumerate(left):
                for channel in {*range(num_channels)} - {*index.tolist()}:
                    gate(prunable, kind, head, channel, 0)
    assert count_params(pruned) == expected_params
    assert budget - largest < expected_params <= budget
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            last_output(pruned, images), last_output(network, images), rtol=1e-4, atol=1e-5
        )


def test_channels_with_the_least_importance_per_cost_are_removed(ours):
    importance = {
        name: {kind: torch.rand_like(values) for kind, values in kinds.items()}
        for name, kinds in channel_importance(ours, make_batches(ours), loss).items()
    }
    spared = importance['stages.0.0.ffn0.branch']
    spared['ffn'] *= 1e6
    _, kept = prune(ours, importance, round(0.8 * count_params(ours)))
    assert kept['stages.0.0.ffn0.branch']['ffn'].shape == spared['ffn'].shape
    for name, kinds in kept.items():
        for kind, left in kinds.items():
            values = importance[name][kind]
            lowest = values.gather(1, left).amin(1, keepdim=True)
            assert ((values >= lowest).sum(1) == left.shape[1]).all()


def params_per_channel(prunable, kind):
    """Number of parameters of one channel in every head."""
    if isinstance(prunable, PrunableCascadedAttention):
        attention = prunable.attention
        return sum(
            2 * (qkv.conv.in_channels + 2) + query.conv.kernel_size[0] ** 2 + 2
            for qkv, query in zip(attention.qkvs, attention.query_convs, strict=True)
        )
    if isinstance(prunable, PrunableAttention):
        inputs, outputs = prunable.attention.qkv.in_features, prunable.attention.proj.out_features
        return prunable.attention.num_heads * (
            2 * (inputs + 1) if kind == 'query' else inputs + 1 + outputs
        )
    inputs, outputs = prunable.first.weight.shape[1], prunable.second.weight.shape[0]
    return inputs + outputs + (2 if isinstance(prunable.norm, nn.BatchNorm2d) else 1)


def test_frozen_and_unused_modules_have_an_importance(randomised):
    network = randomised(TINY, frozen_stages=1).eval()
    before = {name: value.requires_grad for name, value in network.named_parameters()}
    importance = channel_importance(
        network, [torch.randn(1, 3, 64, 64)], lambda network, images: network(images)[1].sum()
    )
    assert importance['stages.0.0.ffn0.branch']['ffn'].max() > 0
    assert importance['stages.2.1.ffn0.branch']['ffn'].max() == 0
    assert before == {name: value.requires_grad for name, value in network.named_parameters()}


def test_budget_can_be_in_macs_and_must_be_reachable(ours):
    importance = channel_importance(ours, make_batches(ours), loss)
    cost = partial(count_macs, images=torch.randn(1, 3, 64, 64))
    pruned, _ = prune(ours, importance, round(0.9 * cost(ours)), cost)
    assert 0.88 * cost(ours) < cost(pruned) <= 0.9 * cost(ours)
    with pytest.raises(ConfigError, match='1000 is too small. Choose at least'):
        prune(ours, importance, budget=1000)


@pytest.mark.parametrize(
    'make',
    [
        lambda: EfficientViT(TINY, norm_cfg=dict(type='GN', num_groups=1)),
        lambda: timm.create_model(
            'swinv2_tiny_window8_256', img_size=64, depths=(1, 1), embed_dim=24
        ),
        lambda: timm.create_model('beit_base_patch16_224', img_size=64, embed_dim=24, depth=1),
    ],
    ids=['group norm', 'swinv2', 'beit'],
)
def test_unsupported_modules_are_not_pruned(make):
    assert not any(
        isinstance(prunable, PrunableAttention | PrunableCascadedAttention)
        for prunable in find_prunable(make()).values()
    )


def test_missing_modules_or_batches_raise_an_error(ours):
    with pytest.raises(ConfigError, match='no attention or FFN that can be pruned'):
        channel_importance(nn.Conv2d(3, 3, 1), [], loss)
    with pytest.raises(ConfigError, match='no batches'):
        channel_importance(ours, [], loss)


class Last(nn.Module):
    """Returns the last of several maps."""

    def forward(self, maps):
        return maps[-1]


def test_importance_ranks_channels_as_removing_them_does():
    """In a small classifier trained for some steps on four noise patterns."""
    network = nn.Sequential(
        EfficientViT(TINY, out_indices=(2,)), Last(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip
    patterns = torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def draw(number):
        labels = torch.randint(4, (number,))
        return patterns[labels] + 2 * torch.randn(number, 3, 64, 64), labels

    def losses(network, batch):
        images, labels = batch
        return F.cross_entropy(network(images), labels, reduction='none')

    for _ in range(40):
        optimizer.zero_grad()
        losses(network, draw(32)).mean().backward()
        optimizer.step()
    network.eval()
    images, labels = batch = draw(16)
    batches = zip(images.split(1), labels.split(1), strict=True)
    importance = channel_importance(network, batches, lambda *args: losses(*args).sum())
    found, measured = [], []
    with torch.no_grad():
        full = losses(network, batch)
        for name, prunable in find_prunable(network).items():
            for kind, values in importance[name].items():
                for head in range(values.shape[0]):
                    for channel in range(0, values.shape[1], 6):
                        handle = gate(prunable, kind, head, channel, 0)
                        measured.append((full - losses(network, batch)).square().mean().item())
                        handle.remove()
                        found.append(values[head, channel].item())
    assert len(found) > 90
    assert spearmanr(found, measured).statistic >= 0.8


def test_keys_keep_the_share_of_their_queries():
    importance = dict(a=dict(query=torch.ones(2, 4), key=torch.ones(2, 4), value=torch.ones(2, 8)))
    rows = shares_kept(importance, dict(a=dict(query=torch.zeros(2, 3))))
    assert [(row['kind'], row['kept'], row['share']) for row in rows] == [
        ('query', 3, 0.75),
        ('key', 3, 0.75),
        ('value', 8, 1.0),
    ]
