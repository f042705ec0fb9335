import pytest
import torch
from needing import needs_profiler
from torch import nn
from torch.profiler import profile

from mmevit.analysis import memory_bound_share, plot_shares, profile_runtime, sum_rows
from mmevit.analysis.runtime import COMPUTE_BOUND, KINDS, MEMORY_BOUND, OTHER, measure_times
from mmevit.benchmark.measuring import count_macs
from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError


class Matmuls(nn.Module):
    """Repeated matmuls: compute-bound."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            torch.mm(x, x)
        return x


class Copies(Matmuls):
    """Repeated transposed copies: memory-bound."""

    def forward(self, x):
        for _ in range(self.times):
            x.t().contiguous()
        return x


def test_bytes_and_flops_match_the_tensors():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Softmax(1))
    rows = profile_runtime(network, torch.rand(2, 3, 10, 12), rounds=1)
    costs = {row['operator']: (row['bytes'], row['flops']) for row in sum_rows(rows, 'operator')}
    outputs, weights = 2 * 8 * 8 * 10, 8 * 3 * 9
    assert costs['convolution'] == (4 * (2 * 3 * 10 * 12 + weights + outputs), 54 * outputs)
    assert costs['relu'] == costs['softmax'] == (4 * 2 * outputs, 0)
    assert costs['view'] == (0, 0)


def test_shares_of_modules_match_their_times_alone():
    x, seconds = torch.rand(512, 512), []
    for network, kind in ((Matmuls(2), 'matmul'), (Copies(10), 'reshape and copy')):
        rows = profile_runtime(network, x, rounds=20)
        seconds.append(sum(row['seconds'] for row in rows))
        assert {row['kind']: row['share'] for row in sum_rows(rows, 'kind')}[kind] > 0.9
    rows = profile_runtime(nn.Sequential(Matmuls(2), Copies(10)), x, rounds=20)
    assert memory_bound_share(rows) == pytest.approx(seconds[1] / sum(seconds), abs=0.15)
    known = [row for row in rows if row['kind'] != OTHER]
    by_module = {row['module']: row['share'] for row in sum_rows(known, 'module')}
    assert by_module['1'] == pytest.approx(memory_bound_share(rows))


@needs_profiler
def test_times_sum_to_the_total_of_the_profiler():
    network, images = EfficientViT('m0').eval(), torch.rand(2, 3, 64, 64)
    profilers = []

    class Kept(profile):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            profilers.append(self)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr('mmevit.analysis.runtime.profile', Kept)
        seconds = measure_times(network, images, rounds=2)
    total = sum(event.self_cpu_time_total for event in profilers[0].key_averages()) / 1e6 / 2
    assert sum(seconds.values()) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize('arch', ['m0', 'm5'])
def test_operators_and_flops_of_efficientvit_are_known_and_hooks_removed(arch):
    network, images = EfficientViT(arch).eval(), torch.rand(1, 3, 64, 64)
    rows = profile_runtime(network, images, rounds=1)
    assert all(row['bytes'] == row['flops'] == 0 for row in rows if row['kind'] == OTHER)
    assert {row['kind'] for row in rows if row['flops']} == set(COMPUTE_BOUND)
    assert sum(row['flops'] for row in rows) // 2 == count_macs(network, images)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    )


def test_too_old_pytorch_is_reported(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.4.1+cu121')
    with pytest.raises(ConfigError, match=r'2\.4\.1\+cu121 is too old.*\. Install 2\.5 or newer\.'):
        profile_runtime(nn.ReLU(), torch.rand(1))


def test_plot_has_a_bar_per_kind_and_network():
    rows = [
        dict(kind=kind, operator=kind, module='', seconds=1.0, bytes=1, flops=0)
        for kind in (*MEMORY_BOUND, *COMPUTE_BOUND, OTHER)
    ]
    (axes,) = plot_shares({'a': rows, 'b': rows[:1]}).axes
    widths = [[round(bar.get_width(), 2) for bar in bars] for bars in axes.containers]
    assert widths == [[14.29, 100.0], *[[14.29, 0.0]] * 6]
    assert set(KINDS.values()) == {*MEMORY_BOUND, *COMPUTE_BOUND}
