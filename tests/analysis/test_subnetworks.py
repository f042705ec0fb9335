import time
from copy import deepcopy

import pytest
import torch
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn

from mmevit.analysis.plots import plot_memory_bound
from mmevit.analysis.subnetworks import (
    AttentionLayer,
    FFNLayer,
    find_subnetwork,
    make_subnetwork,
    measure_speedup,
)
from mmevit.benchmark.measuring import count_macs
from mmevit.utils.errors import ConfigError


def count(network, kind):
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(
    ('name', 'original'),
    [
        ('swin-t', lambda: SwinTransformer('tiny')),
        ('deit-t', lambda: VisionTransformer('deit-tiny')),
    ],
)
def test_half_attention_is_the_original(name, original):
    original, network = original(), make_subnetwork(name, 0.5, 4.0)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    original.eval()
    pairs = zip(original.state_dict().values(), network.state_dict().values(), strict=True)
    for value, target in pairs:
        target.copy_(value)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], original(images)[-1])


@pytest.mark.parametrize('name', ['swin-t', 'deit-t'])
@pytest.mark.parametrize(('share', 'expected'), [(0, 0), (0.1, 2), (0.3, 7), (1, 24)])
def test_number_of_layers_does_not_depend_on_the_share_of_attention(name, share, expected):
    network = make_subnetwork(name, share, 0.5)
    assert count(network, (AttentionLayer, FFNLayer)) == 24
    assert count(network, AttentionLayer) == expected


def macs_ratio(network, original):
    """Speedup if time were proportional to MACs."""
    images = torch.rand(1, 3, 224, 224, device='meta')
    macs = [count_macs(deepcopy(each).to('meta'), images) for each in (original, network)]
    return macs[0] / macs[1]


@pytest.mark.parametrize('share', [0, 0.6])
def test_found_networks_have_the_requested_speedup(share):
    network, ratio, found = find_subnetwork('deit-t', share, 1.3, macs_ratio)
    assert macs_ratio(network, make_subnetwork('deit-t', 0.5, 4.0)) == found
    assert found == pytest.approx(1.3, rel=0.01)
    assert count(network, AttentionLayer) == round(24 * share)


def test_speedup_is_measured_by_the_clock():
    slow, fast = Sleep(0.05), Sleep(0.02)
    assert measure_speedup(fast, slow, torch.rand(1), rounds=3) == pytest.approx(2.5, rel=0.2)


class Sleep(nn.Module):
    """Sleeps for some seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)


def test_unreachable_speedup_raises_an_error():
    with pytest.raises(ConfigError, match='deit-t with 100% attention cannot .* choose another'):
        find_subnetwork('deit-t', 1, 4, macs_ratio)
    with pytest.raises(ConfigError, match="Unknown network 'resnet'. Choose"):
        make_subnetwork('resnet', 0.5, 4.0)


def test_plot_has_a_line_per_network():
    rows = [dict(name=name, attention=0.2, memory_bound=0.4) for name in ('a', 'b')]
    (axes,) = plot_memory_bound(rows).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[20.0, 40.0]]] * 2
