import pytest
import torch
import torch.nn.functional as F
from making_models import TINY
from needing import needs_compiled_gradients

from mmevit.models import EfficientViT
from mmevit.models.attention import (
    WindowAttention,
    partition_windows,
    relative_position_index,
    reverse_windows,
)


def make_attention(channels=24, num_heads=3):
    module = WindowAttention(channels, num_heads, 7, kernel_sizes=(7, 5, 3))
    for name, parameter in module.named_parameters():
        if name.endswith(('norm.weight', 'bias', 'attention_biases')):
            torch.nn.init.normal_(parameter)
    return module.double().eval()


@pytest.mark.parametrize(('rows', 'columns'), [(1, 1), (2, 3)])
def test_windows_of_a_divisible_map_are_independent(rows, columns):
    module = make_attention()
    x = torch.randn(1, 24, 7 * rows, 7 * columns, dtype=torch.float64)
    places = [
        (..., slice(7 * row, 7 * row + 7), slice(7 * column, 7 * column + 7))
        for row in range(rows)
        for column in range(columns)
    ]
    with torch.no_grad():
        dense = module(x)
        together = module(torch.cat([x[place] for place in places]))
        for place, window in zip(places, together, strict=True):
            assert dense[place].squeeze(0).equal(window)
            # Alone, another batch size may have the library add up in another order.
            torch.testing.assert_close(dense[place], module(x[place]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('channels_first', [False, True])
def test_windows_are_in_row_major_order_and_reversed_exactly(channels_first):
    x = torch.randn(2, 6, 9, 13)
    windows = partition_windows(x, 4, channels_first)
    padded = F.pad(x, (0, 3, 0, 3))
    assert windows.shape == (2 * 3 * 4, 6, 4, 4)
    assert windows[12 + 6].equal(padded[1, :, 4:8, 8:12])
    order = torch.contiguous_format if channels_first else torch.channels_last
    assert windows.is_contiguous(memory_format=order)
    assert reverse_windows(windows, x.shape, 4, channels_first).equal(x)


@pytest.mark.parametrize('size', [(3, 5), (7, 9), (10, 20)])
def test_indivisible_maps_are_zero_padded_without_a_mask(size):
    module = make_attention()
    x = torch.randn(2, 24, *size, dtype=torch.float64)
    padded = F.pad(x, (0, -size[1] % 7, 0, -size[0] % 7))
    with torch.no_grad():
        assert module(x).equal(module(padded)[:, :, : size[0], : size[1]])


def test_bias_table_is_indexed_by_row_and_column_distance():
    index = relative_position_index(7)
    assert index[0].tolist() == list(range(49))
    assert index.equal(index.T)
    assert index[8, 20] == 1 * 7 + 5  # (1, 1) and (2, 6)


@pytest.mark.parametrize('new_windows', [(12, 12, 6), (7, 7, 7)])
def test_bias_tables_of_other_windows_are_resized_in_a_copy(new_windows, randomised):
    source = randomised(TINY, window_sizes=(7, 7, 4))
    weights = source.state_dict()
    target = EfficientViT(TINY, window_sizes=new_windows)
    target.load_state_dict(weights)
    for name, loaded in target.state_dict().items():
        if not name.endswith('attention_biases'):
            assert loaded.equal(weights[name])
            continue
        heads, area = weights[name].shape
        table = weights[name].reshape(1, heads, round(area**0.5), -1)
        side = round(loaded.shape[1] ** 0.5)
        wanted = F.interpolate(table, (side, side), mode='bicubic', align_corners=False)
        torch.testing.assert_close(loaded, wanted.reshape(heads, -1))
        assert weights[name].shape == (heads, area)


@pytest.mark.parametrize('shape', [(2, 48), (2, 7, 7), (3, 49)])
def test_a_bias_table_of_another_shape_is_a_size_mismatch(shape):
    weights = EfficientViT(TINY).state_dict()
    name = 'stages.0.0.attention.branch.attention.attention_biases'
    weights[name] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match=f'size mismatch for {name}'):
        EfficientViT(TINY).load_state_dict(weights)


def test_evaluation_uses_weights_changed_after_eval():
    module = make_attention()
    x = torch.randn(1, 24, 7, 7, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)
        module.attention.attention_biases += torch.randn_like(module.attention.attention_biases)
        assert not module(x).equal(before)


@pytest.mark.slow
@needs_compiled_gradients
def test_compiled_attention_has_the_gradients_of_eager():
    # Tensor.unfold() would cut the windows just as well, but its compiled gradient writes outside
    # its memory (PyTorch 2.11).
    module = make_attention(channels=8, num_heads=1).float()
    x = torch.randn(2, 8, 4, 9, requires_grad=True)
    gradients = []
    for forward in (module, torch.compile(module, fullgraph=True)):
        gradients.append(torch.autograd.grad(forward(x).square().sum(), (x, *module.parameters())))
    for actual, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
