"""Selection of boxes in NumPy, for files of runtimes that have none."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np


def select_and_suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    image_sizes: np.ndarray,
    level_sizes: Sequence[int],
    nms_pre: int,
    score_thr: float,
    min_bbox_size: int,
    iou_threshold: float,
    max_num: int,
    class_agnostic: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do what follows the network of a detector: select by score, limit boxes, and suppress.

    Args:
        boxes: (N, L, 4), as x1, y1, x2, y2, for N images.
        scores: (N, L, classes).
        image_sizes: (N, 2), height and width, to which boxes are limited.
        level_sizes: Number of boxes of each level, whose sum is L.
        nms_pre: Number of scores to select of each level.
        score_thr: Scores up to this one are dropped.
        min_bbox_size: Boxes whose height or width is not more are dropped; -1 to keep all.
        iou_threshold: See :func:`suppress`.
        max_num: See :func:`suppress`.
        class_agnostic: See :func:`suppress`.

    Returns:
        See :func:`suppress`.
    """
    images = []
    for image in zip(boxes, scores, image_sizes, strict=True):
        found, best, labels = select_best(*image[:2], level_sizes, nms_pre, score_thr)
        found, best = limit_boxes(found, best, image[2], min_bbox_size)
        settings = iou_threshold, max_num, class_agnostic
        images.append(suppress(found[None], best[None], labels[None], *settings))
    found, best, labels = (np.concatenate(parts) for parts in zip(*images, strict=True))
    return found, best, labels


def select_best(
    boxes: np.ndarray,
    scores: np.ndarray,
    level_sizes: Sequence[int],
    nms_pre: int,
    score_thr: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes (M, 4), scores (M,) and labels (M,) of the best scores of each level."""
    found = []
    for end, size in zip(accumulate(level_sizes), level_sizes, strict=True):
        level = scores[end - size : end].ravel()
        kept = np.flatnonzero(level > score_thr)
        kept = kept[np.argsort(-level[kept], kind='stable')[:nms_pre]]
        rows, labels = np.divmod(kept, scores.shape[1])
        found.append((boxes[end - size : end][rows], level[kept], labels))
    best, values, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return best, values, labels


def limit_boxes(
    boxes: np.ndarray, scores: np.ndarray, image_size: np.ndarray, min_bbox_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Limit boxes (M, 4) to the height and width of an image; small ones get a score of 0."""
    height, width = image_size
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes, scores * ((sides > min_bbox_size).all(axis=1) | (min_bbox_size < 0))


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    iou_threshold: float,
    max_num: int,
    class_agnostic: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop boxes that overlap a better one of their class.

    Args:
        boxes: (N, M, 4), as x1, y1, x2, y2, for N images.
        scores: (N, M). Boxes with a score of 0 are padding, which is dropped.
        labels: (N, M).
        iou_threshold: Boxes that overlap a better one by more are dropped.
        max_num: Number of boxes to keep of each image, K.
        class_agnostic: Whether boxes of other classes count too.

    Returns:
        Boxes (N, K, 4), scores (N, K) and labels (N, K), by descending score. Padding has score 0
        and label -1.

    Example:
        >>> boxes = np.float32([[[0, 0, 8, 9], [0, 0, 9, 9], [0, 0, 9, 9]]])
        >>> _, scores, labels = suppress(boxes, np.float32([[0.5, 0.7, 0.6]]), [[0, 0, 1]], 0.5, 3)
        >>> scores.tolist(), labels.tolist()
        ([[0.699999988079071, 0.6000000238418579, 0.0]], [[0, 1, -1]])
    """
    labels = np.asarray(labels)
    results = (
        np.zeros((len(boxes), max_num, 4), np.float32),
        np.zeros((len(boxes), max_num), np.float32),
        np.full((len(boxes), max_num), -1, np.int64),
    )
    for index, image in enumerate(zip(boxes, scores, labels, strict=True)):
        groups = np.zeros_like(labels[index]) if class_agnostic else labels[index]
        kept = select(*image[:2], groups, iou_threshold, max_num)
        for result, values in zip(results, image, strict=True):
            result[index, : len(kept)] = values[kept]
    return results


def select(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, iou_threshold: float, max_num: int
) -> list[int]:
    """Return the indices of the boxes of an image that are kept; only those of a group compete."""
    order = np.argsort(-scores, kind='stable')
    order, kept = order[scores[order] > 0], []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order) and len(kept) < max_num:
        best, order = order[0], order[1:]
        kept.append(int(best))
        start = np.maximum(boxes[best, :2], boxes[order, :2])
        end = np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.clip(end - start, 0, None).prod(axis=1)
        is_covered = common > iou_threshold * (areas[best] + areas[order] - common)
        order = order[~(is_covered & (groups[order] == groups[best]))]
    return kept
