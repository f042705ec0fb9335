import numpy as np
import pytest
import torch
from mmdet.models import FCNMaskHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures.mask import mask2bbox
from mmengine.config import ConfigDict
from pycocotools import mask as mask_api
from torch.nn import functional

from mmevit.utils.masks import encode, find_boxes, paste, resize_axis, resize_masks, resize_segments


def test_pasted_masks_equal_mmdet():
    """On the CPU, where mmdet pastes only near the box; also of boxes without area."""
    torch.manual_seed(0)
    corners = torch.rand(20, 2, 2) * torch.tensor([90.0, 60.0]) - 5
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)
    boxes[:3, 2] = boxes[:3, 0]
    boxes[2:5, 3] = boxes[2:5, 1]
    boxes[5] = torch.tensor([10.0, 20, 30, 40])  # pixels start here, so that mmdet adds one
    masks = torch.rand(20, 28, 14)
    for mask, box in zip(masks, boxes.clamp(min=0), strict=True):
        expected, expected_region = _do_paste_mask(mask[None, None], box[None], 50, 80)
        values, region = paste(mask.numpy(), box.numpy(), (50, 80))
        assert region == tuple(slice(int(x.start), int(x.stop)) for x in expected_region)
        np.testing.assert_allclose(values, expected[0], atol=1e-4)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('threshold', [0, 0.3, 0.5])
def test_masks_in_boxes_are_those_of_mmdet(threshold):
    boxes = torch.tensor([[100.0, 100, 500, 500], [50.2, 60, 50.2, 90], [300, 20, 340, 20]])
    head = FCNMaskHead(num_convs=0, class_agnostic=True)
    arguments = torch.full((3, 1, 28, 28), 50.0), boxes.clone(), torch.zeros(3)
    image = dict(scale_factor=(1, 1), ori_shape=(600, 600))
    config = ConfigDict(mask_thr_binary=threshold)
    expected = head._predict_by_feat_single(*arguments, image, config)
    assert expected.any(dim=2).any(dim=1).all()
    kind, sizes = dict(kind='box', threshold=threshold), [(600, 600)] * 3
    found = resize_masks(np.ones((3, 28, 28), np.float32), boxes.numpy(), kind, sizes)
    np.testing.assert_array_equal(found, expected)


def test_resized_masks_equal_interpolate():
    torch.manual_seed(0)
    mask = torch.randn(1, 1, 20, 30)
    expected = functional.interpolate(mask, size=(160, 240), mode='bilinear', align_corners=False)
    expected = functional.interpolate(expected[..., :150, :200], size=(97, 333), mode='bilinear')
    rows, columns = (
        resize_axis(part, new) @ resize_axis(old, full)[:part]
        for old, full, part, new in ((20, 160, 150, 97), (30, 240, 200, 333))
    )
    np.testing.assert_allclose(rows @ mask[0, 0].numpy() @ columns.T, expected[0, 0], atol=1e-4)


def test_resized_segments_equal_interpolate():
    torch.manual_seed(0)
    segments = torch.randint(150, (64, 96))
    for size in ((40, 200), (128, 76), (60, 90)):  # without pixels that are equally near
        part = segments[None, None, :60, :90].float()
        expected = functional.interpolate(part, size, mode='nearest-exact')[0, 0]
        found = resize_segments(segments.numpy(), size, (60, 90))
        np.testing.assert_array_equal(found, expected)


def test_encoded_masks_equal_pycocotools():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, (40, 2)).tolist()
    noise = [rng.random(size) < rng.random() for size in sizes]
    whole = np.ones((700, 900), bool)  # run lengths of many bits
    part = whole.copy()
    part[100:600, 3:800] = False
    for mask in (*noise, whole, ~whole, part, ~part):
        expected = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode(mask) == dict(expected, counts=expected['counts'].decode())


def test_boxes_of_masks_equal_mmdet():
    torch.manual_seed(0)
    masks = torch.zeros(5, 40, 60, dtype=torch.bool)
    for mask in masks[1:]:
        mask[torch.randint(40, (6,)), torch.randint(60, (6,))] = True
    np.testing.assert_array_equal(find_boxes(masks.numpy()), mask2bbox(masks))
