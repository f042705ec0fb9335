"""Operators of detectors, each of which exporters translate at once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms


def select_boxes(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    """Apply non-maximum suppression to the boxes of one image.

    Args:
        boxes: (M, 4), as x1, y1, x2, y2.
        scores: (M,). Boxes with a score of 0 are padding, which is dropped.
        iou_threshold: Boxes that overlap a better one by more are dropped.
        max_num: Number of boxes to keep.

    Returns:
        Indices of the kept boxes, (max_num,), int64, by descending score, padded with -1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 8, 9], [5, 5, 9, 9], [20, 0, 30, 9]])
        >>> select_boxes(boxes, torch.tensor([0.5, 0.9, 0.6, 0.0]), 0.5, 3).tolist()
        [1, 2, -1]
    """
    candidates = torch.nonzero(scores > 0)[:, 0]
    best = nms(boxes[candidates], scores[candidates], iou_threshold)[:max_num]
    kept = torch.full([max_num], -1, dtype=torch.int64, device=boxes.device)
    kept[: best.shape[0]] = candidates[best]
    return kept


def extract_rois(
    maps: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: list[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Apply RoIAlign to one map for each box.

    Args:
        maps: Feature maps of one image, each (1, C, H, W).
        boxes: (M, 4), as x1, y1, x2, y2 in pixels of the image.
        levels: (M,), int64, the index of the map for each box.
        scales: Size of each map relative to the image.
        size: Height and width of the output.
        sampling_ratio: Number of samples along each side of a bin, 0 for an adaptive number.
        aligned: Whether pixels are centered at half coordinates.

    Returns:
        (M, C, size, size).
    """
    rois = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], dim=1)
    output = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], size, size)
    for level, (features, scale) in enumerate(zip(maps, scales)):  # noqa: B905 (TorchScript)
        index = torch.nonzero(levels == level)[:, 0]
        # The type hints of torchvision.ops.roi_align are wrong.
        output[index] = torch.ops.torchvision.roi_align(
            features, rois[index], scale, size, size, sampling_ratio, aligned
        )
    return output


def lay_masks(
    rows: Tensor,
    columns: Tensor,
    labels: Tensor,
    count: Tensor,
    threshold: float,
    max_overlap: float,
) -> Tensor:
    """Lay masks over one another, the first on top.

    Args:
        rows: (K, H, S). Its product with ``columns`` are the probabilities of each mask.
        columns: (K, S, W).
        labels: (K,), int64.
        count: Number of masks; the others are padding.
        threshold: Probability from which on a pixel belongs to a mask.
        max_overlap: Masks of which a larger part is covered are dropped.

    Returns:
        (H, W), int64, the label + 1000 * the number of the mask from 1 on, 0 outside all masks.
    """
    output = torch.zeros(rows.shape[1], columns.shape[2], dtype=torch.int64, device=rows.device)
    number = 0
    for index in range(int(count)):
        mask = rows[index] @ columns[index] >= threshold
        covered, area = (mask & (output > 0)).sum(), mask.sum()
        if area > 0 and covered / (area + 1e-5) <= max_overlap:
            number += 1
            output = torch.where(mask & (output == 0), labels[index] + 1000 * number, output)
    return output


# torch.library.custom_op would be shorter, but needs PyTorch 2.4.
LIBRARY = torch.library.Library('mmevit', 'DEF')


def define(schema: str, function: Callable[..., Any], shape: Callable[..., Any]) -> Any:
    """Define an operator, and return it.

    ``shape`` returns an uninitialized result, for shape inference.
    """
    name = schema.partition('(')[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, function, 'CompositeExplicitAutograd')
    LIBRARY.impl(name, shape, 'Meta')
    return getattr(torch.ops.mmevit, name).default


SELECT_BOXES = define(
    'select_boxes(Tensor boxes, Tensor scores, float iou_threshold, int max_num) -> Tensor',
    select_boxes,
    lambda boxes, scores, iou_threshold, max_num: boxes.new_empty(max_num, dtype=torch.int64),
)
EXTRACT_ROIS = define(
    'extract_rois(Tensor[] maps, Tensor boxes, Tensor levels, float[] scales, int size, '
    'int sampling_ratio, bool aligned) -> Tensor',
    extract_rois,
    lambda maps, boxes, levels, scales, size, *_: boxes.new_empty(
        boxes.shape[0], maps[0].shape[1], size, size
    ),
)
LAY_MASKS = define(
    'lay_masks(Tensor rows, Tensor columns, Tensor labels, Tensor count, float threshold, '
    'float max_overlap) -> Tensor',
    lay_masks,
    lambda rows, columns, labels, *_: labels.new_empty(rows.shape[1], columns.shape[2]),
)
