"""Proposals, and the features and masks of regions of interest."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import (
    BBoxHead,
    EmbeddingRPNHead,
    FCNMaskHead,
    RPNHead,
    SingleRoIExtractor,
    SparseRoIHead,
)
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import one_hot

from ..operators import EXTRACT_ROIS
from .boxes import filter_scores_and_topk, list_candidates


def predict_proposals(
    self: RPNHead,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: list[Tensor],
    mlvl_priors: list[Tensor],
    img_meta: dict[str, Any],
    cfg: Any = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> InstanceData:
    """Return the proposals of an image, see ``RPNHead._predict_by_feat_single()``.

    The boxes of padding are NaN.
    """
    cfg, levels = cfg or self.test_cfg, []
    for level, (logits, deltas, priors) in enumerate(
        zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
    ):
        logits = list_candidates(logits, self.cls_out_channels)
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        deltas = list_candidates(deltas, self.bbox_coder.encode_size)
        scores, _, _, (deltas, priors) = filter_scores_and_topk(
            scores, 0, cfg.nms_pre, [deltas, priors]
        )
        levels.append((deltas, priors, scores, torch.full_like(scores, level, dtype=torch.int64)))
    deltas, priors, scores, level_ids = (torch.cat(parts) for parts in zip(*levels, strict=True))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=img_meta['img_shape'])
    results: Any = InstanceData(bboxes=boxes, scores=scores, level_ids=level_ids)
    results = self._bbox_post_process(results, cfg, img_meta=img_meta)
    results.bboxes = torch.where(results.scores[:, None] > 0, results.bboxes, torch.nan)
    return results


def make_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return RoIs of an image, see ``bbox2roi()``. The index of padding is -1 instead of 0."""
    is_padding = boxes[0].isnan()
    return torch.cat([-is_padding[:, :1].float(), torch.where(is_padding, 0, boxes[0])], dim=1)


def drop_padding(
    self: BBoxHead, roi: Tensor, cls_score: Tensor, *args: Any, **kwargs: Any
) -> InstanceData:
    """Classify padding as background, see ``BBoxHead._predict_by_feat_single()``."""
    num_channels = cls_score.shape[1]
    background = 1e4 * one_hot(torch.tensor(num_channels - 1), num_channels)
    cls_score = torch.where(roi[:, :1] < 0, background.to(cls_score), cls_score)
    return PREDICT_BOXES(self, roi, cls_score, *args, **kwargs)


PREDICT_BOXES = BBoxHead._predict_by_feat_single


def extract_roi_features(
    self: SingleRoIExtractor,
    feats: Sequence[Tensor],
    rois: Tensor,
    roi_scale_factor: float | None = None,
) -> Tensor:
    """Return the features of the RoIs of an image, see ``SingleRoIExtractor.forward()``."""
    levels = self.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = self.roi_rescale(rois, roi_scale_factor)
    layers: Any = self.roi_layers
    return EXTRACT_ROIS(
        list(feats),
        rois[:, 1:],
        levels,
        [layer.spatial_scale for layer in layers],
        layers[0].output_size[0],
        layers[0].sampling_ratio,
        layers[0].aligned,
    )


def predict_box_masks(
    self: FCNMaskHead,
    mask_preds: Sequence[Tensor],
    results_list: list[Any],
    batch_img_metas: list[dict[str, Any]],
    rcnn_test_cfg: Any,
    rescale: bool = False,
    activate_map: bool = False,
) -> list[InstanceData]:
    """Return the probabilities in each box as ``masks``, see ``FCNMaskHead.predict_by_feat()``."""
    (masks,), (results,), (meta,) = mask_preds, results_list, batch_img_metas
    rows = torch.arange(masks.shape[0], device=masks.device)
    masks = masks[rows, 0 if self.class_agnostic else results.labels]
    results.masks = masks if activate_map else masks.sigmoid()
    results.set_metainfo(
        dict(img_shape=meta['img_shape'], mask_threshold=rcnn_test_cfg.mask_thr_binary)
    )
    return results_list


def decode_learned_proposals(
    self: EmbeddingRPNHead, x: Sequence[Tensor], batch_data_samples: Sequence[Any]
) -> list[InstanceData]:
    """Return the proposals of an image, see ``EmbeddingRPNHead._decode_init_proposals()``."""
    height, width = batch_data_samples[0].img_shape
    size = torch.stack([width, height, width, height])
    boxes = bbox_cxcywh_to_xyxy(self.init_proposal_bboxes.weight) * size
    return [InstanceData(bboxes=boxes, features=self.init_proposal_features.weight)]


def refine_boxes(
    self: BBoxHead,
    sampling_results: Any,
    bbox_results: dict[str, Any],
    batch_img_metas: Sequence[dict[str, Any]],
) -> list[InstanceData]:
    """Return the refined boxes of an image, see ``BBoxHead.refine_bboxes()``."""
    labels = bbox_results['cls_score'][:, : self.num_classes].argmax(dim=1)
    rois, deltas = bbox_results['rois'], bbox_results['bbox_pred']
    boxes = self.regress_by_class(rois[:, 1:], labels, deltas, batch_img_metas[0])
    return [InstanceData(bboxes=boxes)]


def sort_detections(self: SparseRoIHead, *args: Any, **kwargs: Any) -> list[InstanceData]:
    """Sort detections by score, which ``SparseRoIHead.predict_bbox()`` does not."""
    results: Any = PREDICT_QUERIES(self, *args, **kwargs)[0]
    return [results[results.scores.argsort(descending=True)]]


PREDICT_QUERIES = SparseRoIHead.predict_bbox

FUNCTIONS = dict(bbox2roi=make_rois)
METHODS = [
    (RPNHead, '_predict_by_feat_single', predict_proposals),
    (SingleRoIExtractor, 'forward', extract_roi_features),
    (BBoxHead, '_predict_by_feat_single', drop_padding),
    (BBoxHead, 'refine_bboxes', refine_boxes),
    (FCNMaskHead, 'predict_by_feat', predict_box_masks),
    (EmbeddingRPNHead, '_decode_init_proposals', decode_learned_proposals),
    (SparseRoIHead, 'predict_bbox', sort_detections),
]
