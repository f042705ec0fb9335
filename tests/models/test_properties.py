"""The backbone against the paper written out in float64, whatever its arguments are."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mmevit.utils.errors import UserError

# Of the largest value of a map; bfloat16 keeps three digits, through dozens of layers.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}


class Reference:
    """Computes what the paper's Section 3 says, layer by layer, from a dict of weights.

    Args:
        weights (dict[str, Tensor]): The weights of a backbone.
        num_heads (Sequence[int]): Heads of attention in each stage.
        windows (Sequence[int]): Sides of the windows in each stage.
    """

    def __init__(self, weights, num_heads, windows):
        self.weights = {name: value.double() for name, value in weights.items()}
        self.num_heads, self.windows = num_heads, windows

    def has(self, name):
        return f'{name}.conv.weight' in self.weights

    def conv(self, x, name, stride=1):
        weight = self.weights[f'{name}.conv.weight']
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        parts = ('running_mean', 'running_var', 'weight', 'bias')
        return F.batch_norm(x, *(self.weights[f'{name}.norm.{part}'] for part in parts))

    def mix(self, x, name, number):
        """Residual depthwise convolution and residual FFN."""
        x = x + self.conv(x, f'{name}.depthwise{number}')
        branch = f'{name}.ffn{number}.branch'
        return x + self.conv(self.conv(x, f'{branch}.expand').relu(), f'{branch}.reduce')

    def subsample(self, x, name):
        x = self.conv(self.mix(x, name, 0), f'{name}.expand').relu()
        x = self.conv(x, f'{name}.downsample', stride=2).relu()
        weights = {
            part: self.weights[f'{name}.squeeze_excite.{part}']
            for part in ('reduce.weight', 'reduce.bias', 'expand.weight', 'expand.bias')
        }
        scale = x.mean((2, 3), keepdim=True)
        scale = F.conv2d(scale, weights['reduce.weight'], weights['reduce.bias']).relu()
        x = x * F.conv2d(scale, weights['expand.weight'], weights['expand.bias']).sigmoid()
        return self.mix(self.conv(x, f'{name}.reduce'), name, 1)

    def attend(self, x, name, num_heads, side):
        """Attention in windows of a map that is padded with zeros below and on the right."""
        height, width = x.shape[2:]
        padded = F.pad(x, (0, -width % side, 0, -height % side))
        output = torch.empty_like(padded)
        for top in range(0, padded.shape[2], side):
            for left in range(0, padded.shape[3], side):
                place = (..., slice(top, top + side), slice(left, left + side))
                output[place] = self.attend_in_window(padded[place], name, num_heads, side)
        return x + output[:, :, :height, :width]

    def attend_in_window(self, x, name, num_heads, side):
        """Equations 2 to 4."""
        biases = self.weights[f'{name}.attention_biases']
        ys, xs = (
            axis.flatten() for axis in torch.meshgrid([torch.arange(side)] * 2, indexing='ij')
        )
        distances = (ys[:, None] - ys).abs() * side + (xs[:, None] - xs).abs()
        outputs, previous = [], 0
        for head, split in enumerate(x.chunk(num_heads, dim=1)):
            features = self.conv(split + previous, f'{name}.qkvs.{head}')
            query, key, value = features.split((16, 16, split.shape[1]), dim=1)
            query = self.conv(query, f'{name}.query_convs.{head}')
            scores = torch.einsum('bcq,bck->bqk', query.flatten(2), key.flatten(2)) / 4
            weights = (scores + biases[head][distances]).softmax(-1)
            previous = torch.einsum('bqk,bck->bcq', weights, value.flatten(2)).view_as(split)
            outputs.append(previous)
        return self.conv(torch.cat(outputs, dim=1).relu(), f'{name}.proj')

    def __call__(self, x):
        x = x.double()
        for index in (0, 2, 4, 6):
            x = self.conv(x if index == 0 else x.relu(), f'stem.{index}', stride=2)
        maps = []
        for stage, (num_heads, side) in enumerate(zip(self.num_heads, self.windows, strict=True)):
            for index in itertools.count():
                name = f'stages.{stage}.{index}'
                if not self.has(f'{name}.depthwise0'):
                    break
                if self.has(f'{name}.downsample'):
                    x = self.subsample(x, name)
                else:
                    x = self.mix(x, name, 0)
                    attention = f'{name}.attention.branch.attention'
                    x = self.mix(self.attend(x, attention, num_heads, side), name, 1)
            maps.append(x)
        return maps


@st.composite
def archs(draw):
    """Draw an arch: widths that the heads divide, and a kernel size for each head."""
    num_heads = draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    multiples = draw(st.lists(st.integers(1, 3), min_size=3, max_size=3))
    kernel_sizes = draw(st.lists(st.sampled_from((1, 3, 5, 7)), min_size=4, max_size=4))
    # The first is halved three times in the stem.
    widths = [math.lcm(8, heads) * times for heads, times in zip(num_heads, multiples, strict=True)]
    depths = draw(st.lists(st.integers(1, 2), min_size=3, max_size=3))
    return dict(
        embed_dims=widths,
        depths=depths,
        num_heads=num_heads,
        kernel_sizes=kernel_sizes[: max(num_heads)],
    )


@pytest.mark.parametrize('dtype', TOLERANCES, ids=lambda dtype: str(dtype).removeprefix('torch.'))
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    arch=archs(),
    window_sizes=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    size=st.tuples(st.integers(1, 260), st.integers(1, 260)),
    batch=st.integers(1, 3),
    in_channels=st.integers(1, 4),
    out_indices=st.lists(st.integers(0, 2), min_size=1, unique=True).map(sorted),
    channels_last=st.booleans(),
    folded=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_random_arguments_agree_with_the_reference(
    randomised,
    dtype,
    arch,
    window_sizes,
    size,
    batch,
    in_channels,
    out_indices,
    channels_last,
    folded,
    seed,
):
    # Smaller ones are refused.
    assume(dtype != torch.bfloat16 or min(size) >= 32)
    torch.manual_seed(seed)
    model = randomised(
        arch, window_sizes=window_sizes, in_channels=in_channels, out_indices=out_indices
    ).eval()
    reference = Reference(copy.deepcopy(model.state_dict()), arch['num_heads'], window_sizes)
    images = torch.rand(batch, in_channels, *size)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if folded:
        model.double()  # so that float64 keeps its digits
        model.switch_to_deploy()
    model.to(dtype, memory_format=memory_format)
    with torch.no_grad():
        maps = model(images.to(dtype, memory_format=memory_format))
        expected = reference(images)
    assert len(maps) == len(out_indices)
    for actual, index in zip(maps, out_indices, strict=True):
        assert actual.dtype == dtype and actual.shape == expected[index].shape
        error = (actual.double() - expected[index]).abs().max() / expected[index].abs().max()
        assert error < TOLERANCES[dtype]


@pytest.mark.parametrize('autocast', [False, True], ids=['bfloat16', 'autocast'])
def test_images_below_32_pixels_raise_in_bfloat16_on_a_cpu(randomised, autocast):
    model = randomised('m0').eval()
    model.switch_to_deploy()
    if not autocast:
        model.bfloat16()
    dtype = torch.float32 if autocast else torch.bfloat16
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        for size in ((42, 1), (31, 64)):
            with pytest.raises(UserError, match='too small for bfloat16'):
                model(torch.rand(1, 3, *size, dtype=dtype))
        assert all(map_.isfinite().all() for map_ in model(torch.rand(1, 3, 32, 32, dtype=dtype)))
