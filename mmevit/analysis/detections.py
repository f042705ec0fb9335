"""Detections compared with annotations: precision and recall, and confused classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .plots import draw_matrix, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pycocotools.cocoeval import COCOeval


def count_confusions(
    evaluated: COCOeval, score_threshold: float = 0.3, iou_threshold: float = 0.5
) -> np.ndarray:
    """Count which class is detected where an object of a class is.

    Each detection, the most certain first, takes the object that it overlaps most of those that are
    left, of whatever class. Ignored objects are not counted, nor are the detections on them.

    Args:
        evaluated: After ``COCOeval.evaluate()``.
        score_threshold: Detections of lower scores are not counted.
        iou_threshold: Detections that overlap less with all objects are on the background.

    Returns:
        (classes + 1, classes + 1) counts by class of the object and class of the detection, in the
        order of the category ids; the last row and column are the background, and objects that are
        not detected.
    """
    order = {category: index for index, category in enumerate(evaluated.params.catIds)}
    counts = np.zeros((len(order) + 1,) * 2, int)
    datasets: list[Any] = [evaluated.cocoGt, evaluated.cocoDt]
    for image in evaluated.params.imgIds:
        objects, found = (
            [one for one in dataset.imgToAnns[image] if one['category_id'] in order]
            for dataset in datasets
        )
        detections = [one for one in found if one['score'] >= score_threshold]
        for pair in match(objects, detections, iou_threshold):
            row, column = (-1 if one is None else order[one['category_id']] for one in pair)
            counts[row, column] += 1
    return counts


def match(
    objects: Sequence[dict], detections: Sequence[dict], iou_threshold: float
) -> Iterator[tuple[dict | None, dict | None]]:
    """Yield the objects and detections of an image in pairs, None for those without a partner."""
    # Not at the top: only mmdet needs pycocotools.
    from pycocotools import mask as coco_masks

    detections = sorted(detections, key=lambda one: -one['score'])
    crowds = [one['iscrowd'] for one in objects]
    overlaps = np.zeros((len(detections), len(objects)))
    if objects and detections:
        boxes = [[one['bbox'] for one in each] for each in (detections, objects)]
        overlaps = np.array(coco_masks.iou(boxes[0], boxes[1], crowds))
    for detection, row in zip(detections, overlaps, strict=True):
        if row.max(initial=0) < iou_threshold:
            yield None, detection
        elif not crowds[best := int(row.argmax())]:
            yield objects[best], detection
            overlaps[:, best] = -1  # taken
    for index, one in enumerate(objects):
        if not (crowds[index] or (overlaps[:, index] == -1).any()):
            yield one, None


def evaluate_boxes(ann_file: str | Path, results: str | Path) -> COCOeval:
    """Evaluate the boxes of a results file in COCO's format with pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(None):  # it prints each step
        truth = COCO(str(ann_file))
        evaluated = COCOeval(truth, truth.loadRes(str(results)), 'bbox')
        evaluated.evaluate()
        evaluated.accumulate()
    return evaluated


def plot_precision_recall(evaluated: COCOeval, classes: Sequence[str]) -> Figure:
    """Plot precision against recall at an IoU of 0.5, a line for each class.

    Args:
        evaluated: After ``COCOeval.accumulate()``.
        classes: Names in the order of the category ids. Those without objects have no line.
    """
    # IoU, recall, class, area (all), number of detections (the most)
    precision = evaluated.eval['precision'][0, :, :, 0, -1]
    figure, axes = new_figure(6.4, 4.8)
    for index, name in enumerate(classes):
        values = precision[:, index]
        if (values >= 0).all():
            label = f'{name} ({values.mean():.3f})'
            axes.plot(evaluated.params.recThrs, values, label=label)
    axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title('Precision and recall at IoU 0.5 (AP50)', fontsize=10)
    if len(classes) <= 20:
        axes.legend(loc='lower left', fontsize=8, frameon=False)
    return figure


def plot_confusions(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the counts of :func:`count_confusions`, coloured by their share of the objects.

    Args:
        counts: By class of the object and of the detection.
        classes: Names in the order of the category ids.
    """
    objects = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(objects, 1)
    # The background has no number of objects.
    shares[-1] = 0
    texts = counts.astype(str)
    texts[-1, -1] = ''
    figure, axes = draw_matrix(shares, texts, [*classes, 'background'], [*classes, 'not detected'])
    axes.set(xlabel='detected as', ylabel='object')
    return figure
