"""mmcv's operators with channels-last maps and weights."""

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack, RoIAlign
from torchvision.ops import deform_conv2d, roi_align

import mmevit  # noqa: F401 (fixes the operators)

FORMATS = (torch.contiguous_format, torch.channels_last)


def test_channels_last_maps_are_aligned_like_contiguous_ones():
    torch.manual_seed(0)
    maps = torch.rand(2, 8, 20, 30)
    rois = torch.tensor([[0.0, 4, 8, 60, 70], [1, 0, 0, 119, 79]])
    expected = roi_align(maps, rois, 7, 0.25, 0, True)
    layer = RoIAlign(7, 0.25, 0)
    for memory_format in FORMATS:
        aligned = layer(maps.to(memory_format=memory_format), rois)
        assert torch.allclose(aligned, expected, atol=1e-5)


@pytest.mark.parametrize('kind', [DeformConv2dPack, ModulatedDeformConv2dPack])
@pytest.mark.parametrize('memory_format', FORMATS)
def test_deformable_convolutions_equal_those_of_torchvision(kind, memory_format):
    torch.manual_seed(0)
    layer, maps = kind(8, 8, 3, padding=1), torch.rand(2, 8, 16, 20)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    offsets, mask = layer.conv_offset(maps), None
    if kind is ModulatedDeformConv2dPack:
        # Channels of x and y alternate already.
        offsets, mask = offsets[:, :18], offsets[:, 18:].sigmoid()
    bias = getattr(layer, 'bias', None)
    expected = deform_conv2d(maps, offsets, layer.weight, bias, padding=1, mask=mask)
    layer, maps = layer.to(memory_format=memory_format), maps.to(memory_format=memory_format)
    assert torch.allclose(layer(maps), expected, atol=1e-4)
