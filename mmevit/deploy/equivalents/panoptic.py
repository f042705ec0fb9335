"""Fusing masks and semantic segmentation to panoptic segmentation."""

from typing import Any

import torch
from mmdet.models import HeuristicFusionHead
from mmengine.structures import PixelData
from torch import Tensor

from ..operators import LAY_MASKS


def fuse_segments(self: Any, mask_results: Any, seg_preds: Tensor) -> PixelData:
    """Return a panoptic segmentation, see ``HeuristicFusionHead._predict_single()``.

    Pixels outside the image without padding are unlabelled.

    Args:
        self: The ``HeuristicFusionHead``.
        mask_results: ``InstanceData``, detections by descending score, with masks in the boxes.
        seg_preds: Logits of things as one class and of stuff, (num_stuff + 1, H, W).
        **kwargs: Not used.
    """
    height, width = mask_results.img_shape
    rows, columns = (
        torch.arange(length, device=seg_preds.device) + 0.5 for length in seg_preds.shape[1:]
    )
    left, top, right, bottom = mask_results.bboxes[:, :, None].unbind(dim=1)
    to_rows = interpolate(rows, top, bottom, height, mask_results.masks.shape[1])
    to_columns = interpolate(columns, left, right, width, mask_results.masks.shape[2])
    things = LAY_MASKS(
        to_rows @ mask_results.masks,
        to_columns.mT,
        mask_results.labels,
        (mask_results.scores > 0).sum(),
        mask_results.mask_threshold,
        self.test_cfg.mask_overlap,
    )
    stuff = seg_preds.argmax(dim=0) + self.num_things_classes
    is_inside = (rows < height)[:, None] & (columns < width)
    stuff = torch.where(is_inside & (things == 0), stuff, self.num_classes)
    areas = seg_preds.new_zeros(self.num_classes + 1)
    areas = areas.scatter_add(
        0, stuff.flatten(), torch.ones_like(stuff.flatten(), dtype=areas.dtype)
    )
    is_small = areas < self.test_cfg.stuff_area_limit
    stuff = torch.where(is_small[stuff], self.num_classes, stuff)
    return PixelData(sem_seg=torch.where(things > 0, things, stuff)[None])


def interpolate(
    centers: Tensor, start: Tensor, end: Tensor, limit: Tensor, num_cells: int
) -> Tensor:
    """Return the weights of bilinear interpolation along one axis of masks in boxes.

    They are those of mmdet's ``_do_paste_mask()``.

    Args:
        centers: (L,), of the pixels.
        start: (K, 1), of the boxes.
        end: (K, 1), of the boxes.
        limit: The size of the image without padding.
        num_cells: The size of the masks.

    Returns:
        Weights (K, L, num_cells).
    """
    length = end - start
    positions = (centers - start) / torch.where(length > 0, length, 1) * num_cells - 0.5
    # mmdet uses the center of the mask where a box has no area.
    positions = torch.where(length > 0, positions, (num_cells - 1) / 2)
    cells = torch.arange(num_cells, device=centers.device)
    weights = (1 - (positions[:, :, None] - cells).abs()).clamp(min=0)
    is_near = (centers > start.floor() - 1) & (centers < end.ceil() + 1) & (centers < limit)
    return weights * is_near[:, :, None]


METHODS = [(HeuristicFusionHead, '_predict_single', fuse_segments)]
