"""Heads that fuse predictions to panoptic segments or to instances."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import HeuristicFusionHead, MaskFormerFusionHead
from mmdet.structures import INSTANCE_OFFSET
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn.functional import interpolate

from ..operators import LAY_MASKS


def fuse_segments(self: Any, mask_results: Any, seg_preds: Tensor) -> PixelData:
    """Return a panoptic segmentation, see ``HeuristicFusionHead._predict_single()``.

    Pixels outside the image without padding are unlabelled.

    Args:
        self: The head.
        mask_results: Detections by descending score, with masks in the boxes.
        seg_preds: Logits of things as one class and of stuff, (num_stuff + 1, H, W).
    """
    height, width = mask_results.img_shape
    num_rows, num_columns = seg_preds.shape[1:]
    left, top, right, bottom = mask_results.bboxes[:, :, None].unbind(dim=1)
    to_rows = paste_weights(num_rows, top, bottom, height, mask_results.masks.shape[1])
    to_columns = paste_weights(num_columns, left, right, width, mask_results.masks.shape[2])
    things = LAY_MASKS(
        to_rows @ mask_results.masks,
        to_columns.mT,
        mask_results.labels,
        (mask_results.scores > 0).sum(),
        mask_results.mask_threshold,
        self.test_cfg.mask_overlap,
    )
    stuff = seg_preds.argmax(dim=0) + self.num_things_classes
    is_free = find_content((num_rows, num_columns), (height, width), seg_preds.device)
    stuff = torch.where(is_free & (things == 0), stuff, self.num_classes)
    areas = seg_preds.new_zeros(self.num_classes + 1)
    areas = areas.scatter_add(0, stuff.flatten(), areas.new_ones(()).expand(stuff.numel()))
    is_small = areas < self.test_cfg.stuff_area_limit
    stuff = torch.where(is_small[stuff], self.num_classes, stuff)
    return PixelData(sem_seg=torch.where(things > 0, things, stuff)[None])


def paste_weights(
    num_pixels: int, start: Tensor, end: Tensor, limit: Tensor, num_cells: int
) -> Tensor:
    """Return the weights with which mmdet pastes masks in boxes, along one axis.

    Args:
        num_pixels: The size of the image with padding.
        start: (K, 1), of the boxes.
        end: (K, 1), of the boxes.
        limit: The size of the image without padding.
        num_cells: The size of the masks.

    Returns:
        Weights (K, num_pixels, num_cells) of bilinear interpolation.
    """
    centers = torch.arange(num_pixels, device=start.device) + 0.5
    length = end - start
    positions = (centers - start) / torch.where(length > 0, length, 1) * num_cells - 0.5
    # mmdet uses the center of the mask where a box has no area.
    positions = torch.where(length > 0, positions, (num_cells - 1) / 2)
    cells = torch.arange(num_cells, device=centers.device)
    weights = (1 - (positions[:, :, None] - cells).abs()).clamp(min=0)
    is_near = (centers > start.floor() - 1) & (centers < end.ceil() + 1) & (centers < limit)
    return weights * is_near[:, :, None]


def find_content(shape: Sequence[int], size: Sequence[Any], device: Any) -> Tensor:
    """Return which pixels of a padded image (H, W) belong to the image of a size."""
    rows, columns = (
        torch.arange(side, device=device) < limit for side, limit in zip(shape, size, strict=True)
    )
    return rows[:, None] & columns


def fuse_queries(
    self: Any,
    mask_cls_results: Tensor,
    mask_pred_results: Tensor,
    batch_data_samples: Sequence[Any],
    rescale: bool = False,
) -> list[dict[str, Any]]:
    """Return segments, or else instances, see ``MaskFormerFusionHead.predict()``."""
    (sample,) = batch_data_samples
    shape = sample.batch_input_shape
    masks = interpolate(mask_pred_results, tuple(shape), mode='bilinear')[0]
    is_content = find_content(shape, sample.img_shape, masks.device)
    if self.test_cfg.get('panoptic_on', True):
        return [dict(pan_results=select_segments(self, mask_cls_results[0], masks, is_content))]
    found: Any = select_instances(self, mask_cls_results[0], masks, is_content)
    found.masks = mask_pred_results[0][found.pop('queries')]
    return [dict(ins_results=found)]


def select_segments(self: Any, logits: Tensor, masks: Tensor, is_content: Tensor) -> PixelData:
    """Return segments, see ``MaskFormerFusionHead.panoptic_postprocess()``.

    Args:
        self: The head.
        logits: Of each query, (Q, classes + 1).
        masks: Logits, (Q, H, W).
        is_content: Whether pixels belong to the image, (H, W).
    """
    cfg = self.test_cfg
    scores, labels = logits.softmax(dim=1).max(dim=1)
    masks = masks.sigmoid()
    kept = (labels != self.num_classes) & (scores > cfg.get('object_mask_thr', 0.8))
    best = torch.where(kept[:, None, None], scores[:, None, None] * masks, -1).argmax(dim=0)
    queries = torch.arange(len(labels), device=labels.device)
    area = ((best == queries[:, None, None]) & is_content).sum(dim=(1, 2))
    own_area = ((masks >= 0.5) & is_content).sum(dim=(1, 2))
    kept &= (area > 0) & (own_area > 0) & (area / own_area >= cfg.get('iou_thr', 0.8))
    is_thing = labels < self.num_things_classes
    number = (kept & is_thing).cumsum(dim=0)
    values = torch.where(is_thing, labels + number * INSTANCE_OFFSET, labels)
    segments = torch.where(kept, values, self.num_classes)[best]
    if cfg.get('filter_low_score', False):
        is_solid = masks.gather(0, best[None])[0] >= 0.5
        segments = torch.where(is_solid, segments, self.num_classes)
    return PixelData(sem_seg=segments[None])


def select_instances(self: Any, logits: Tensor, masks: Tensor, is_content: Tensor) -> InstanceData:
    """Return instances by descending score, and their queries instead of masks.

    See ``MaskFormerFusionHead.instance_postprocess()``, and :func:`select_segments` for the
    arguments.
    """
    is_mask = (masks > 0) & is_content
    quality = torch.where(is_mask, masks.sigmoid(), 0).sum(dim=(1, 2))
    quality = quality / (is_mask.sum(dim=(1, 2)) + 1e-6)
    scores = logits.softmax(dim=1)[:, :-1].flatten()
    scores, index = scores.topk(self.test_cfg.get('max_per_image', 100))
    queries, labels = index // self.num_classes, index % self.num_classes
    scores = scores * quality[queries] * (labels < self.num_things_classes)
    scores, order = scores.sort(descending=True)
    queries, labels = queries[order], labels[order]
    boxes = find_boxes(is_mask)[queries]
    return InstanceData(bboxes=boxes, scores=scores, labels=labels, queries=queries)


def find_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around masks (N, H, W), see ``mask2bbox()``."""
    sides = []
    for axis in (2, 1):
        is_covered = masks.any(dim=3 - axis)
        index = torch.arange(masks.shape[axis], device=masks.device)
        start = torch.where(is_covered, index, masks.shape[axis]).amin(dim=1)
        end = torch.where(is_covered, index + 1, 0).amax(dim=1)
        sides.append((start, end))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], dim=1).float()


METHODS = [
    (HeuristicFusionHead, '_predict_single', fuse_segments),
    (MaskFormerFusionHead, 'predict', fuse_queries),
]
