import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures.mask import mask2bbox
from pycocotools import mask as mask_api
from torch.nn import functional

from mmevit.utils.masks import encode, find_boxes, paste, resize_axis


def test_pasted_masks_equal_mmdet():
    torch.manual_seed(0)
    corners = torch.rand(20, 2, 2) * torch.tensor([90.0, 60.0]) - 5
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)
    masks = torch.rand(20, 28, 28)
    for mask, box in zip(masks, boxes, strict=True):
        expected, _ = _do_paste_mask(mask[None, None], box[None], 50, 80, skip_empty=False)
        found = paste(mask.numpy(), box.numpy(), (50, 80))
        np.testing.assert_allclose(found, expected[0], atol=1e-4)


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
