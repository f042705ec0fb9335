import pytest
import timm
import torch
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn
from torch.nn import functional as F

from mmevit.analysis import head_similarity, plot_similarity
from mmevit.analysis.heads import attention_map, max_similarity
from mmevit.models import EfficientViT
from mmevit.utils.errors import ConfigError


def reference_similarity(maps):
    """Each head's largest cosine similarity with another one, of maps (heads, L, L)."""
    result = []
    for head, own in enumerate(maps):
        cosines = [
            float((own * other).sum() / (own.square().sum() * other.square().sum()).sqrt())
            for index, other in enumerate(maps)
            if index != head
        ]
        result.append(max(cosines))
    return torch.tensor(result)


def test_similarity_matches_the_formula():
    maps = torch.rand(3, 4, 9, 9).softmax(-1)
    maps[:, 1] = 2 * maps[:, 0]
    expected = torch.stack([reference_similarity(sample) for sample in maps])
    torch.testing.assert_close(max_similarity(maps), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(max_similarity(maps)[:, :2], torch.ones(3, 2))


def test_maps_of_cascaded_heads_are_compared(randomised):
    backbone = randomised('m0').eval()
    attention = backbone.stages[1][1].attention.branch.attention
    queries, keys = [], []
    for conv, qkv in zip(attention.query_convs, attention.qkvs, strict=True):
        conv.register_forward_hook(lambda *call: queries.append(call[2].flatten(2).mT / 4))
        qkv.register_forward_hook(lambda *call: keys.append(call[2][:, 16:32].flatten(2)))
    similarity = head_similarity(backbone, [torch.rand(2, 3, 128, 128)])
    biases = attention.attention_biases[:, attention.bias_index].detach()
    logits = zip(queries, keys, biases, strict=True)
    maps = torch.stack([(query @ key + bias).softmax(-1) for query, key, bias in logits], dim=1)
    expected = torch.stack([reference_similarity(sample) for sample in maps]).mean(0)
    name = 'stages.1.1.attention.branch.attention'
    torch.testing.assert_close(similarity[name], expected.detach(), rtol=0, atol=1e-6)
    assert len(similarity) == 6


@pytest.mark.parametrize(
    ('make', 'num_blocks'),
    [
        (lambda: SwinTransformer(arch='tiny', img_size=112, pad_small_map=True), 12),
        (lambda: VisionTransformer(arch='deit-tiny', img_size=112), 12),
        (lambda: timm.create_model('deit_tiny_patch16_224', img_size=112), 12),
        (lambda: timm.create_model('swin_tiny_patch4_window7_224', img_size=112), 12),
        (lambda: EfficientViT('m5', deploy=True), 8),
    ],
    ids=['swin', 'vit', 'timm vit', 'timm swin', 'folded'],
)
def test_every_attention_of_a_network_is_found(make, num_blocks):
    network = make()
    network.eval()
    similarity = head_similarity(network, [torch.rand(2, 3, 112, 112)])
    assert len(similarity) == num_blocks
    assert all(0 < value <= 1 + 1e-6 for heads in similarity.values() for value in heads)


@pytest.mark.parametrize(
    'options',
    [{}, dict(scale=0.3), dict(is_causal=True), dict(attn_mask='bool'), dict(attn_mask='float')],
)
def test_attention_map_times_values_equals_fused_attention(options):
    query, key, value = torch.rand(3, 2, 4, 5, 8).double()
    masks = dict(bool=torch.eye(5, dtype=torch.bool), float=torch.rand(5, 5).double())
    if 'attn_mask' in options:
        options = dict(attn_mask=masks[options['attn_mask']])
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(attention_map(query, key, value, **options) @ value, expected)


def test_batch_size_does_not_change_the_mean(randomised):
    backbone, images = randomised('m0').eval(), torch.rand(5, 3, 64, 64)
    full = head_similarity(backbone, [images])
    parts = head_similarity(backbone, [images[:4], images[4:]])
    for name in full:
        torch.testing.assert_close(parts[name], full[name])


@pytest.mark.parametrize('network', [nn.Softmax(1), nn.Conv2d(3, 4, 1)])
def test_network_without_heads_raises_an_error(network):
    with pytest.raises(ConfigError, match='no attention of more than one head'):
        head_similarity(network, [torch.rand(1, 3, 8, 8)])


def test_plot_has_a_line_per_network():
    blocks = {'a': torch.tensor([0.5, 0.7]), 'b': torch.tensor([0.1, 0.3])}
    (axes,) = plot_similarity({'first': blocks, 'second': dict(a=blocks['b'])}).axes
    lines = [line.get_ydata() for line in axes.lines]
    assert [[round(float(value), 6) for value in line] for line in lines] == [[0.6, 0.2], [0.2]]
