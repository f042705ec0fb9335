"""Parts of single-stage detectors that depend on data."""

from typing import Any

import torch
from mmdet.models import PAAHead, VFNetHead, YOLOXHead
from mmdet.models.dense_heads.gfl_head import Integral
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

from .boxes import list_candidates, select_best


def sigmoid_geometric_mean(x: Tensor, y: Tensor) -> Tensor:
    """Return the geometric mean of two sigmoids, see the function of mmdet."""
    return (x.sigmoid() * y.sigmoid()).sqrt()


def integrate(self: Integral, x: Tensor) -> Tensor:
    """Return the mean of each distribution, see ``Integral.forward()``.

    torch.onnx does not support its cast of a buffer to the same type. OpenVINO computes products of
    matrices in bfloat16, but not sums.
    """
    project: Any = self.project
    return (x.reshape(-1, self.reg_max + 1).softmax(dim=1) * project).sum(dim=1).reshape(-1, 4)


def star_offsets(self: VFNetHead, bbox_pred: Tensor, gradient_mul: float, stride: int) -> Tensor:
    """Return where to sample boxes, see ``VFNetHead.star_dcn_offset()``.

    torch.export does not support assigning to rows of maps that can have one pixel.
    """
    left, top, right, bottom = (bbox_pred / stride).unbind(dim=1)
    middle = torch.zeros_like(top)
    points = [(y, x) for y in (-top, middle, bottom) for x in (-left, middle, right)]
    offsets = torch.stack([side for point in points for side in point], dim=1)
    return offsets - self.dcn_base_offset.type_as(bbox_pred)


def predict_yolox(
    self: YOLOXHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    objectnesses: list[Tensor],
    batch_img_metas: list[dict[str, Any]],
    cfg: Any = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> list[InstanceData]:
    """Return the detections of an image, see ``YOLOXHead.predict_by_feat()``."""
    cfg = cfg or self.test_cfg
    priors = self.prior_generator.grid_priors(
        [level.shape[2:] for level in cls_scores],
        dtype=cls_scores[0].dtype,
        device=cls_scores[0].device,
        with_stride=True,
    )
    logits, deltas, objectness = (
        torch.cat([level[0].flatten(1) for level in levels], dim=1).t()
        for levels in (cls_scores, bbox_preds, objectnesses)
    )
    scores, labels = logits.sigmoid().max(dim=1)
    scores = scores * objectness[:, 0].sigmoid()
    results = InstanceData(
        bboxes=self._bbox_decode(torch.cat(priors), deltas),
        scores=torch.where(scores >= cfg.score_thr, scores, 0),
        labels=labels,
    )
    return [self._bbox_post_process(results, cfg, rescale, with_nms, batch_img_metas[0])]


def predict_paa(
    self: PAAHead,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: list[Tensor],
    mlvl_priors: list[Tensor],
    img_meta: dict[str, Any],
    cfg: Any = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> InstanceData:
    """Return the detections of an image, see ``PAAHead._predict_by_feat_single()``."""
    cfg, levels = cfg or self.test_cfg, []
    for logits, deltas, factors, priors in zip(
        cls_score_list, bbox_pred_list, score_factor_list, mlvl_priors, strict=True
    ):
        scores = list_candidates(logits, self.cls_out_channels).sigmoid()
        factors = list_candidates(factors, 1).sigmoid()
        best, kept = select_best((scores * factors).sqrt().amax(dim=1), cfg.nms_pre)
        factors = torch.where(best > 0, factors[kept, 0], 0)
        deltas = list_candidates(deltas, 4)[kept]
        boxes = self.bbox_coder.decode(priors[kept], deltas, max_shape=img_meta['img_shape'])
        levels.append((boxes, scores[kept], factors))
    boxes, scores, factors = (torch.cat(parts) for parts in zip(*levels, strict=True))
    results = InstanceData(bboxes=boxes, scores=scores, score_factors=factors)
    return self._bbox_post_process(results, cfg, rescale, with_nms, img_meta)


def vote(
    self: PAAHead,
    det_bboxes: Tensor,
    det_labels: Tensor,
    mlvl_bboxes: Tensor,
    mlvl_nms_scores: Tensor,
    score_thr: float,
) -> tuple[Tensor, Tensor]:
    """Average overlapping boxes, by descending score, see ``PAAHead.score_voting()``."""
    scores = mlvl_nms_scores.t()[det_labels]  # (detections, boxes)
    overlaps = bbox_overlaps(det_bboxes[:, :4], mlvl_bboxes)
    is_voter = (scores > score_thr) & (overlaps > 0.01)
    weights = torch.exp(-((1 - overlaps) ** 2) / 0.025) * scores * is_voter
    boxes = weights @ mlvl_bboxes / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.cat([boxes, det_bboxes[:, 4:]], dim=1), det_labels


FUNCTIONS = dict(sigmoid_geometric_mean=sigmoid_geometric_mean)
METHODS = [
    (Integral, 'forward', integrate),
    (VFNetHead, 'star_dcn_offset', star_offsets),
    (YOLOXHead, 'predict_by_feat', predict_yolox),
    (PAAHead, '_predict_by_feat_single', predict_paa),
    (PAAHead, 'score_voting', vote),
]
