"""Batched non-maximum suppression as one operator, which exporters can translate."""

import torch
from torch import Tensor
from torchvision.ops import nms


def select_best_boxes(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_num: int
) -> Tensor:
    """Apply non-maximum suppression to each image.

    Args:
        boxes: (N, M, 4), as x1, y1, x2, y2.
        scores: (N, M).
        iou_threshold: Boxes that overlap a better one by more are dropped.
        score_threshold: Boxes of this score or less are dropped.
        max_num: Number of boxes to keep.

    Returns:
        Indices of the kept boxes, (N, max_num), int64, by descending score, padded with -1.

    Example:
        >>> boxes = torch.tensor([[[0.0, 0, 9, 9], [0, 0, 8, 9], [5, 5, 9, 9]]])
        >>> select_boxes(boxes, torch.tensor([[0.5, 0.9, 0.6]]), 0.5, 0.05, 3).tolist()
        [[1, 2, -1]]
    """
    kept = torch.full((len(boxes), max_num), -1, dtype=torch.int64, device=boxes.device)
    for image in range(len(boxes)):
        (candidates,) = torch.where(scores[image] > score_threshold)
        best = nms(boxes[image, candidates], scores[image, candidates], iou_threshold)[:max_num]
        kept[image, : len(best)] = candidates[best]
    return kept


def empty_selection(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, max_num: int
) -> Tensor:
    """Return an uninitialized result of :func:`select_best_boxes`, for shape inference."""
    return boxes.new_empty((boxes.shape[0], max_num), dtype=torch.int64)


# torch.library.custom_op would be shorter, but needs PyTorch 2.4.
OPERATORS = torch.library.Library('mmevit', 'DEF')
OPERATORS.define(
    'select_boxes(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, '
    'int max_num) -> Tensor'
)
OPERATORS.impl('select_boxes', select_best_boxes, 'CompositeExplicitAutograd')
OPERATORS.impl('select_boxes', empty_selection, 'Meta')
select_boxes = torch.ops.mmevit.select_boxes.default
