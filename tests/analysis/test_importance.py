from functools import partial

import pytest
import timm
import torch
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

TINY = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 3, 2), kernel_sizes=(5, 3, 3))
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


def gate(network, prunable, kind, head, channel, factor):
    """Multiply one channel by a factor where it is computed; return the handle of the hook."""
    if isinstance(prunable, PrunableFFN):
        return prunable.second.register_forward_pre_hook(
            lambda module, args: scale(
                args[0],
                channel,
                factor,
                -1 if args[0].dim() < 4 or isinstance(module, nn.Linear) else 1,
            )
        )
    kinds = ('query', 'key', 'value')
    if isinstance(prunable, PrunableAttention):
        width = prunable.attention.qkv.out_features // 3 // prunable.attention.num_heads
        index = (kinds.index(kind) * prunable.attention.num_heads + head) * width + channel
        return prunable.attention.qkv.register_forward_hook(
            lambda module, args, output: scale(output, index, factor, -1)
        )
    layer = (
        prunable.attention.query_convs[head] if kind == 'query' else prunable.attention.qkvs[head]
    )
    start = dict(query=0, key=16, value=32)[kind]
    return layer.register_forward_hook(
        lambda module, args, output: scale(output, start + channel, factor, 1)
    )


def scale(x, channel, factor, axis):
    factors = torch.ones(x.shape[axis], dtype=x.dtype)
    factors[channel] = factor
    shape = [1] * x.dim()
    shape[axis] = -1
    return x * factors.view(shape)


def test_importance_is_the_squared_derivative_of_a_gate_on_the_channel(network):
    batches = [(images.double(), target.double()) for images, target in make_batches(network)]
    network.double()
    importance = channel_importance(network, batches, loss)
    assert (
        sum(isinstance(prunable, PrunableFFN) for prunable in find_prunable(network).values()) > 1
    )
    for name, prunable in find_prunable(network).items():
        for kind, values in importance[name].items():
            head, channel = values.shape[0] - 1, values.shape[1] // 2
            squares = []
            for batch in batches:
                ends = []
                for factor in (1 + 1e-5, 1 - 1e-5):
                    handle = gate(network, prunable, kind, head, channel, factor)
                    with torch.no_grad():
                        ends.append(loss(network, batch).item())
                    handle.remove()
                squares.append(((ends[0] - ends[1]) / 2e-5) ** 2)
            expected = sum(squares) / len(squares)
            assert values[head, channel].item() == pytest.approx(expected, rel=1e-4, abs=1e-14)


def test_pruned_network_equals_the_network_with_these_channels_set_to_zero(network):
    batches = make_batches(network)
    importance = channel_importance(network, batches, loss)
    pruned, kept = prune(network, importance, budget=round(0.9 * count_params(network)))
    handles = []
    for name, prunable in find_prunable(network).items():
        for kind, left in kept[name].items():
            for head, index in enumerate(left):
                removed = set(range(importance[name][kind].shape[1])) - set(index.tolist())
                handles += [gate(network, prunable, kind, head, channel, 0) for channel in removed]
    assert handles
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            last_output(pruned, images), last_output(network, images), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize('share', [0.95, 0.8])
def test_parameters_of_the_pruned_network_match_the_kept_channels(network, share):
    importance = channel_importance(network, make_batches(network), loss)
    budget = round(share * count_params(network))
    pruned, kept = prune(network, importance, budget)
    parameters = count_params(network)
    largest = 0
    for name, prunable in find_prunable(network).items():
        for kind, left in kept[name].items():
            each = params_per_channel(prunable, kind)
            parameters -= (importance[name][kind].shape[1] - left.shape[1]) * each
            largest = max(largest, each)
    assert count_params(pruned) == parameters
    assert budget - largest < parameters <= budget


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
    return inputs + outputs + (2 if prunable.norm else 1)


def test_frozen_and_unused_modules_have_an_importance(randomised):
    network = randomised(TINY, frozen_stages=1).eval()
    before = {name: value.requires_grad for name, value in network.named_parameters()}
    importance = channel_importance(
        network, [torch.randn(1, 3, 64, 64)], lambda network, images: network(images)[1].sum()
    )
    assert importance['stages.0.0.ffn0.branch']['ffn'].max() > 0
    assert importance['stages.2.1.ffn0.branch']['ffn'].max() == 0
    assert before == {name: value.requires_grad for name, value in network.named_parameters()}


def test_budget_can_be_in_macs():
    network = NETWORKS['ours']().eval()
    images = torch.randn(1, 3, 64, 64)
    importance = channel_importance(network, make_batches(network), loss)

    def cost(network):
        with torch.no_grad():
            return count_macs(network, images)

    pruned, _ = prune(network, importance, round(0.9 * cost(network)), cost)
    assert 0.88 * cost(network) < cost(pruned) <= 0.9 * cost(network)


def test_unreachable_budget_raises_an_error():
    network = NETWORKS['ours']().eval()
    importance = channel_importance(network, make_batches(network), loss)
    with pytest.raises(ConfigError, match='1000 is too small. Choose at least'):
        prune(network, importance, budget=1000)


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


def test_network_without_supported_modules_raises_an_error():
    with pytest.raises(ConfigError, match='no attention or FFN that can be pruned'):
        channel_importance(nn.Conv2d(3, 3, 1), [], loss)


def test_missing_batches_raise_an_error():
    with pytest.raises(ConfigError, match='no batches'):
        channel_importance(NETWORKS['ours']().eval(), [], loss)


@pytest.fixture(scope='module')
def trained():
    """A small classifier trained for some steps on four noise patterns."""
    torch.manual_seed(0)
    network = nn.Sequential(
        EfficientViT(TINY, out_indices=(2,)), Last(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 4),
    )  # fmt: skip
    patterns = torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

    def draw(number):
        labels = torch.randint(4, (number,))
        return patterns[labels] + 2 * torch.randn(number, 3, 64, 64), labels

    for _ in range(40):
        images, labels = draw(32)
        step = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        step.backward()
        optimizer.step()
    images, labels = draw(16)
    return network.eval(), list(zip(images.split(1), labels.split(1), strict=True))


class Last(nn.Module):
    """Returns the last of several maps."""

    def forward(self, maps):
        return maps[-1]


def classification_loss(network, batch):
    images, labels = batch
    return F.cross_entropy(network(images), labels)


def test_importance_ranks_channels_as_removing_them_does(trained):
    network, batches = trained
    importance = channel_importance(network, batches, classification_loss)
    found, measured = [], []
    with torch.no_grad():
        full = [classification_loss(network, batch).item() for batch in batches]
        for name, prunable in find_prunable(network).items():
            for kind, values in importance[name].items():
                for head, channel in torch.cartesian_prod(
                    torch.arange(values.shape[0]), torch.arange(0, values.shape[1], 6)
                ).tolist():
                    handle = gate(network, prunable, kind, head, channel, 0)
                    without = [classification_loss(network, batch).item() for batch in batches]
                    handle.remove()
                    squares = [(a - b) ** 2 for a, b in zip(full, without, strict=True)]
                    found.append(values[head, channel].item())
                    measured.append(sum(squares) / len(squares))
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
