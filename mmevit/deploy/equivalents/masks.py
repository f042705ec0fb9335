"""Masks of one-stage instance segmentation.

The values of a mask are for a plain bilinear resize to the padded image, see :func:`mask_format`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import (
    CondInstMaskHead,
    RTMDetInsHead,
    SOLOV2Head,
    YOLACTHead,
    YOLACTProtonet,
)
from mmdet.models.layers import mask_matrix_nms
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.models.utils import aligned_bilinear
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import grid_sample, unfold

from .boxes import list_candidates, select_best


def predict_dynamic_masks(
    self: RTMDetInsHead,
    results: InstanceData,
    mask_feat: Tensor,
    cfg: Any,
    rescale: bool = False,
    with_nms: bool = True,
    img_meta: dict[str, Any] | None = None,
) -> InstanceData:
    """Select boxes and return logits, see ``RTMDetInsHead._bbox_mask_post_process()``."""
    found: Any = self._bbox_post_process(results, cfg, img_meta=img_meta)
    found.masks = self._mask_predict_by_feat_single(mask_feat, found.kernels, found.priors)
    return found


def enlarge_masks(self: CondInstMaskHead, mask_preds: Tensor, **kwargs: Any) -> Tensor:
    """Return probabilities of pixels, see ``CondInstMaskHead._predict_by_feat_single()``.

    ``aligned_bilinear`` is half a pixel off a plain resize, which only the size of the image
    reproduces.
    """
    return aligned_bilinear(mask_preds.sigmoid()[None], self.mask_out_stride)[0]


def stretch_masks(
    self: YOLACTProtonet, mask_preds: Tensor, img_meta: dict[str, Any], **kwargs: Any
) -> Tensor:
    """Return probabilities of pixels, see ``YOLACTProtonet._predict_by_feat_single()``.

    mmdet resizes masks of the padded image to the size without padding.
    """
    rows, columns = (
        (torch.arange(length, device=mask_preds.device) + 0.5) / size * 2 - 1
        for length, size in zip(img_meta['batch_input_shape'], img_meta['img_shape'], strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    grid = torch.stack([x, y], dim=-1)[None]
    return grid_sample(mask_preds[None], grid, padding_mode='border', align_corners=False)[0]


def predict_coefficients(
    self: YOLACTHead,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    coeff_preds_list: list[Tensor],
    mlvl_priors: list[Tensor],
    img_meta: dict[str, Any],
    cfg: Any,
    rescale: bool = True,
) -> InstanceData:
    """Return boxes and mask coefficients, see ``YOLACTHead._predict_by_feat_single()``."""
    cfg, levels = cfg or self.test_cfg, []
    for logits, *values, priors in zip(
        cls_score_list, bbox_pred_list, coeff_preds_list, mlvl_priors, strict=True
    ):
        logits = list_candidates(logits, self.cls_out_channels)
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(dim=1)
        best, kept = select_best(scores[:, : self.num_classes].amax(dim=1), cfg.nms_pre)
        deltas, coefficients = (
            list_candidates(value, size)[kept]
            for value, size in zip(values, (4, self.num_protos), strict=True)
        )
        levels.append((scores[kept] * (best > 0)[:, None], deltas, coefficients, priors[kept]))
    scores, deltas, coefficients, priors = (torch.cat(parts) for parts in zip(*levels, strict=True))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=img_meta['img_shape'])
    return self._bbox_post_process(boxes, scores, coefficients, cfg, img_meta=img_meta)


def fast_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    multi_coeffs: Tensor,
    score_thr: float,
    iou_thr: float,
    top_k: int,
    max_num: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Select boxes for each class, see the function of mmdet."""
    top_k = min(top_k, multi_scores.shape[0])
    scores, index = multi_scores[:, :-1].t().topk(top_k)
    boxes = multi_bboxes[index]
    overlaps = bbox_overlaps(boxes, boxes).triu(diagonal=1)
    is_kept = (overlaps.amax(dim=1) <= iou_thr) & (scores > score_thr)
    scores = (scores * is_kept).flatten()
    scores, best = scores.topk(min(max_num, scores.shape[0]))
    kept = index.flatten()[best]
    return torch.cat([multi_bboxes[kept], scores[:, None]], 1), best // top_k, multi_coeffs[kept]


def generate_coordinate(featmap_sizes: Sequence[int], device: Any) -> Tensor:
    """Return coordinates from -1 to 1, see the function of mmdet."""
    batch, _, *sides = featmap_sizes
    steps = (torch.arange(side, device=device).float() for side in sides)
    y, x = (step / step[-1:].clamp(min=1) * 2 - 1 for step in steps)
    return torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1]).repeat(batch, 1, 1, 1)


def predict_kernel_masks(
    self: SOLOV2Head,
    kernel_preds: Tensor,
    cls_scores: Tensor,
    mask_feats: Tensor,
    img_meta: dict[str, Any],
    cfg: Any = None,
) -> InstanceData:
    """Return probabilities of masks, see ``SOLOV2Head._predict_by_feat_single()``."""
    cfg = cfg or self.test_cfg
    num_points, num_classes = cls_scores.shape
    scores = torch.where(cls_scores > cfg.score_thr, cls_scores, 0)
    # The only number of rows that depends on data. Masks of all points would take gigabytes.
    candidates = torch.nonzero(scores.amax(dim=1))[:, 0]
    strides = torch.cat(
        [
            scores.new_full([grid**2], stride)
            for grid, stride in zip(self.num_grids, self.strides, strict=True)
        ]
    )
    masks, is_inside, areas = make_masks(self, kernel_preds[candidates], mask_feats, cfg)
    quality = (masks * is_inside).sum((1, 2)) / areas * (areas > strides[candidates])
    quality = scores.new_zeros(num_points).index_put((candidates,), quality)
    scores, index = (scores * quality[:, None]).flatten().topk(cfg.nms_pre)
    masks, is_inside, areas = make_masks(self, kernel_preds[index // num_classes], mask_feats, cfg)
    scores, labels, _, kept = mask_matrix_nms(
        is_inside,
        index % num_classes,
        scores,
        max_num=cfg.max_per_img,
        kernel=cfg.kernel,
        sigma=cfg.sigma,
        mask_area=areas,
    )
    scores = torch.where(scores >= cfg.filter_thr, scores, 0)
    boxes = scores.new_zeros(scores.shape[0], 4)
    return InstanceData(bboxes=boxes, scores=scores, labels=labels, masks=masks[kept])


def make_masks(
    head: SOLOV2Head, kernels: Tensor, features: Tensor, cfg: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks of kernels as probabilities and as booleans, and their areas from 1."""
    size = head.dynamic_conv_size
    shape = [side - size + 1 for side in features.shape[2:]]
    # A matrix product supports no kernels at all, unlike a convolution.
    patches = unfold(features, size) if size > 1 else features.flatten(2)
    masks = (kernels @ patches[0]).unflatten(1, shape).sigmoid()
    is_inside = masks > cfg.mask_thr
    return masks, is_inside, is_inside.sum((1, 2)).float().clamp(min=1)


def mask_format(model: Any) -> dict[str, Any] | None:
    """Return what a mask is and its threshold, None for models without masks.

    ``kind='box'``: probabilities inside of the box. ``kind='image'``: values to be resized
    bilinearly (align_corners=False) to the size of the padded image. Values above the threshold
    belong to the object.
    """
    if getattr(model, 'with_roi_head', False) and model.with_mask:
        return dict(kind='box', threshold=model.roi_head.test_cfg.mask_thr_binary)
    for part in model.children():
        cfg: Any = getattr(part, 'test_cfg', None)
        if isinstance(part, RTMDetInsHead):  # logits
            probability = cfg.mask_thr_binary
            return dict(kind='image', threshold=math.log(probability / (1 - probability)))
        if isinstance(part, (CondInstMaskHead, YOLACTProtonet, SOLOV2Head)):  # probabilities
            return dict(kind='image', threshold=cfg.mask_thr)
        if isinstance(part, MaskFormerFusionHead):  # logits
            return dict(kind='image', threshold=0)
    return None


FUNCTIONS = dict(fast_nms=fast_nms, generate_coordinate=generate_coordinate)
METHODS = [
    (RTMDetInsHead, '_bbox_mask_post_process', predict_dynamic_masks),
    (CondInstMaskHead, '_predict_by_feat_single', enlarge_masks),
    (YOLACTHead, '_predict_by_feat_single', predict_coefficients),
    (YOLACTProtonet, '_predict_by_feat_single', stretch_masks),
    (SOLOV2Head, '_predict_by_feat_single', predict_kernel_masks),
]
