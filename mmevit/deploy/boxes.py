"""Non-maximum suppression of a batch as one operator, which exporters know how to translate."""

import torch
from torchvision.ops import nms


def select_best_boxes(boxes, scores, iou_threshold, score_threshold, max_num):
    """Select the best boxes of each image that do not overlap much with better ones.

    Args:
        boxes (Tensor): (N, M, 4), as x1, y1, x2, y2.
        scores (Tensor): (N, M).
        iou_threshold (float): Overlap, from 0 to 1, above which the worse box is dropped.
        score_threshold (float): Boxes of this score or less are dropped.
        max_num (int): Number of boxes to keep.

    Returns:
        Tensor: Indices of the kept boxes, (N, max_num), int64, the best first, then -1.

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


# torch.library.custom_op would be shorter, but PyTorch before 2.4 lacks it.
OPERATORS = torch.library.Library('mmevit', 'DEF')
OPERATORS.define(
    'select_boxes(Tensor boxes, Tensor scores, float iou_threshold, float score_threshold, '
    'int max_num) -> Tensor'
)
OPERATORS.impl('select_boxes', select_best_boxes, 'CompositeExplicitAutograd')
OPERATORS.impl(
    'select_boxes',
    lambda boxes, scores, iou_threshold, score_threshold, max_num: boxes.new_empty(
        (boxes.shape[0], max_num), dtype=torch.int64
    ),
    'Meta',
)
select_boxes = torch.ops.mmevit.select_boxes.default
