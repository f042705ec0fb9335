"""Proposals, and the features and masks of regions of interest."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import FCNMaskHead, RPNHead, SingleRoIExtractor
from mmengine.structures import InstanceData
from torch import Tensor

from ..operators import EXTRACT_ROIS
from .boxes import filter_scores_and_topk


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
    """Return the proposals of an image, see ``RPNHead._predict_by_feat_single()``."""
    cfg, levels = cfg or self.test_cfg, []
    for level, (logits, deltas, priors) in enumerate(
        zip(cls_score_list, bbox_pred_list, mlvl_priors, strict=True)
    ):
        logits = logits.permute(1, 2, 0).reshape(-1, self.cls_out_channels)
        scores = logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        deltas = deltas.permute(1, 2, 0).reshape(-1, self.bbox_coder.encode_size)
        scores, _, _, (deltas, priors) = filter_scores_and_topk(
            scores, 0, cfg.nms_pre, [deltas, priors]
        )
        levels.append((deltas, priors, scores, torch.full_like(scores, level, dtype=torch.int64)))
    deltas, priors, scores, level_ids = (torch.cat(parts) for parts in zip(*levels, strict=True))
    boxes = self.bbox_coder.decode(priors, deltas, max_shape=img_meta['img_shape'])
    results = InstanceData(bboxes=boxes, scores=scores, level_ids=level_ids)
    return self._bbox_post_process(results, cfg, img_meta=img_meta)


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
    self: FCNMaskHead, mask_preds: Tensor, bboxes: Tensor, labels: Tensor, **kwargs: Any
) -> Tensor:
    """Return the probabilities in each box, see ``FCNMaskHead._predict_by_feat_single()``."""
    rows = torch.arange(mask_preds.shape[0], device=mask_preds.device)
    return mask_preds[rows, 0 if self.class_agnostic else labels].sigmoid()


METHODS = [
    (RPNHead, '_predict_by_feat_single', predict_proposals),
    (SingleRoIExtractor, 'forward', extract_roi_features),
    (FCNMaskHead, '_predict_by_feat_single', predict_box_masks),
]
