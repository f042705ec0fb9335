"""Selecting boxes by score and by non-maximum suppression."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..operators import SELECT_BOXES

# Up to this number of candidates, their locations are selected first. Indices then stay below 2^24:
# OpenVINO divides larger integers inexactly, in float32.
MAX_LOCATIONS = 5000


def list_candidates(level: Tensor, num_columns: int) -> Tensor:
    """Return the predictions of a level (C, H, W) as rows of candidates (-1, num_columns)."""
    return level.permute(1, 2, 0).reshape(-1, num_columns)


def select_best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the best of scores (M,) and their indices; padding has score 0 and any index."""
    if is_fixed(scores.shape[0]) and scores.shape[0] >= count:
        best, index = scores.topk(count)
        return best, index
    best, index = pad(scores, (0, count)).topk(count)
    return best, index.clamp(max=scores.shape[0] - 1)


def is_fixed(size: Any) -> bool:
    """Whether the size of an axis is a constant of the exported network."""
    return isinstance(size, int)


def filter_scores_and_topk(
    scores: Tensor, score_thr: float, topk: int | None, results: Any = None
) -> tuple[Tensor, Tensor, Any, Any]:
    """Return the best candidates of a level, see the function of mmdet.

    With None for ``topk``, return all boxes and their scores of all classes.
    """
    if topk is None:
        return scores, scores[:, 0], slice(None), results
    num_locations, num_classes = scores.shape
    rows = None
    scores = torch.where(scores > score_thr, scores, 0)
    keeps_all = is_fixed(num_locations) and num_locations <= topk
    if num_classes > 1 and topk <= MAX_LOCATIONS and not keeps_all:
        best, rows = select_best(scores.amax(dim=1), topk)
        scores = torch.where(best[:, None] > 0, scores[rows], 0)
    scores, index = select_best(scores.flatten(), topk)
    kept = index // num_classes if rows is None else rows[index // num_classes]
    if isinstance(results, dict):
        results = {name: values[kept] for name, values in results.items()}
    elif isinstance(results, list):
        results = [values[kept] for values in results]
    elif results is not None:
        results = results[kept]
    return scores, index % num_classes, kept, results


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    nms_cfg: dict[str, Any],
    class_agnostic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Apply non-maximum suppression by class to ``max_num`` boxes, see the function of mmcv.

    The index of padding is that of the best box. All boxes are returned, in their order, if the
    configuration sets ``suppress=False``.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    if (minimum := nms_cfg['min_bbox_size']) >= 0:
        scores = scores * ((width > minimum) & (height > minimum))
    if threshold := nms_cfg.get('score_threshold'):
        scores = scores * (scores > threshold)
    if not nms_cfg.get('suppress', True):
        return torch.cat([boxes, scores[:, None]], dim=1), torch.arange(len(boxes))
    # An offset per class keeps boxes of different classes from overlapping. Padding does not count.
    largest = torch.where(scores > 0, boxes.amax(dim=1), 0).max()
    offset = 0 if nms_cfg.get('class_agnostic', class_agnostic) else largest + 1
    shifted = boxes + (idxs * offset)[:, None]
    kept = SELECT_BOXES(shifted, scores, nms_cfg['iou_threshold'], nms_cfg['max_num'])
    index = torch.where(kept >= 0, kept, kept[:1].clamp(min=0))
    scores = torch.where(kept >= 0, scores[index], 0)
    return torch.cat([boxes[index], scores[:, None]], dim=1), index


def multiclass_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    score_thr: float,
    nms_cfg: dict[str, Any],
    max_num: int = -1,
    score_factors: Tensor | None = None,
    return_inds: bool = False,
    box_dim: int = 4,
) -> tuple[Tensor, ...]:
    """Select boxes for each class, see the function of mmdet."""
    num_boxes, num_classes = multi_scores.shape[0], multi_scores.shape[1] - 1
    boxes = multi_bboxes.view(num_boxes, -1, 4).expand(-1, num_classes, 4).reshape(-1, 4)
    scores = multi_scores[:, :-1]
    scores = torch.where(scores > score_thr, scores, 0)
    if score_factors is not None:
        scores = scores * score_factors[:, None]
    labels = torch.arange(num_classes, device=scores.device).repeat(num_boxes)
    detections, kept = batched_nms(boxes, scores.flatten(), labels, nms_cfg)
    results = detections, labels[kept]
    return (*results, kept) if return_inds else results


FUNCTIONS = dict(
    filter_scores_and_topk=filter_scores_and_topk,
    batched_nms=batched_nms,
    multiclass_nms=multiclass_nms,
)
