"""mmcv's RoIAlign with feature maps in channels-last memory format."""

import torch
from mmcv.ops import RoIAlign
from torchvision.ops import roi_align

import mmevit  # noqa: F401 (fixes RoIAlign)


def test_channels_last_maps_are_aligned_like_contiguous_ones():
    torch.manual_seed(0)
    maps = torch.rand(2, 8, 20, 30)
    rois = torch.tensor([[0.0, 4, 8, 60, 70], [1, 0, 0, 119, 79]])
    expected = roi_align(maps, rois, 7, 0.25, 0, True)
    layer = RoIAlign(7, 0.25, 0)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        aligned = layer(maps.to(memory_format=memory_format), rois)
        assert torch.allclose(aligned, expected, atol=1e-5)
