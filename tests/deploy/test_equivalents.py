"""Equivalents of functions, compared with those of PyTorch and mmdet."""

import openvino
import pytest
import torch
from mmdet.models.utils import filter_scores_and_topk
from torch import nn
from torch.nn.functional import conv2d

from mmevit.deploy import segmentors
from mmevit.deploy.equivalents import boxes, exportable_operators, tensors
from mmevit.deploy.replacing import ReplaceFunctions


@pytest.mark.parametrize(
    'call',
    [
        lambda x: torch.linspace(-1, 1, 5),
        lambda x: torch.linspace(0.5, 6.5, 7),
        lambda x: torch.clamp(input=x, min=0),
        lambda x: x.clamp(0, 0.5),
        lambda x: x.contiguous(memory_format=torch.channels_last),
    ],
)
def test_calls_of_pytorch_return_the_same(call):
    values = torch.randn(2, 3, 4, 5)
    expected = call(values)
    with ReplaceFunctions(tensors.FUNCTIONS):
        found = call(values)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize('num_bins', [1, (1, 1), 3, (2, 3)])
def test_pooling_is_that_of_pytorch(num_bins):
    maps = torch.rand(2, 3, 7, 8)
    with ReplaceFunctions(segmentors.FUNCTIONS):
        pooled = nn.AdaptiveAvgPool2d(num_bins)(maps)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(num_bins)(maps))


def test_maps_keep_their_precision_when_they_are_joined():
    maps, coordinates, labels = torch.rand(2, 3).half(), torch.rand(2, 2), torch.arange(2)[:, None]
    with ReplaceFunctions(tensors.FUNCTIONS):
        assert torch.cat([maps, coordinates], dim=1).dtype == torch.float16
        joined = torch.cat([labels, coordinates], dim=1)
    assert torch.equal(joined, torch.cat([labels, coordinates], dim=1))


@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('size', [1, 3])
def test_convolutions_with_kernels_for_each_object_return_the_same(size, count):
    maps, kernels, bias = torch.rand(count, 12, 9, 8), torch.rand(6, 4, size, size), torch.rand(6)
    expected = conv2d(maps, kernels, bias, groups=3)
    with ReplaceFunctions(tensors.FUNCTIONS):
        found = conv2d(maps, kernels, bias, groups=3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('is_fixed', [True, False])
@pytest.mark.parametrize('topk', [20, 400])
@pytest.mark.parametrize('num_classes', [1, 7])
@pytest.mark.parametrize('score_thr', [0.05, 0.97])
def test_best_candidates_are_those_of_mmdet(score_thr, num_classes, topk, is_fixed):
    def select(scores, priors):
        *found, others = boxes.filter_scores_and_topk(scores, score_thr, topk, dict(priors=priors))
        return *found, others['priors']

    if not is_fixed:
        select = torch.jit.trace(select, (torch.rand(150, num_classes), torch.rand(150, 4)))
    scores, priors = torch.rand(200, num_classes), torch.rand(200, 4)
    *expected, others = filter_scores_and_topk(scores, score_thr, topk, dict(priors=priors))
    found = select(scores, priors)
    count = len(expected[0])
    assert 0 < count <= topk == len(found[0])
    for values, wanted in zip(found, (*expected, others['priors']), strict=True):
        assert torch.equal(values[:count], wanted)
    assert not found[0][count:].any()


@pytest.mark.slow
def test_openvino_finds_the_labels_of_more_candidates_than_float32_counts():
    class Candidates(nn.Module):
        def forward(self, scores):
            return boxes.filter_scores_and_topk(scores, 0.5, 100)[:3]

    scores = 0.4 * torch.rand(250_000, 80)
    rows, labels = torch.randint(240_000, 250_000, (100,)).unique(), torch.arange(80).repeat(2)
    labels = labels[: len(rows)]
    assert rows[-1] * 80 > 2**24
    scores[rows, labels] = torch.linspace(0.6, 0.9, len(rows))
    compiled = openvino.compile_model(
        openvino.convert_model(Candidates(), example_input=scores[:1000]), 'CPU'
    )
    _, found_labels, found_rows = compiled(scores.numpy()).values()
    assert found_rows[: len(rows)].tolist() == rows.flip(0).tolist()
    assert found_labels[: len(rows)].tolist() == labels.flip(0).tolist()


def test_functions_are_only_replaced_in_the_block():
    before = filter_scores_and_topk
    with exportable_operators():
        from mmdet.models.dense_heads import base_dense_head

        assert base_dense_head.filter_scores_and_topk is boxes.filter_scores_and_topk
    assert base_dense_head.filter_scores_and_topk is before
