import json

import numpy as np
import pytest
import supervision

from mmevit.analysis.detections import (
    count_confusions,
    evaluate_boxes,
    plot_confusions,
    plot_precision_recall,
)

CLASSES = ['cat', 'dog', 'eel']


@pytest.fixture
def files(tmp_path):
    """Objects that do not overlap, and detections of most of them, with errors."""
    rng = np.random.default_rng(0)
    images, annotations, results = [], [], []
    for image_id in range(1, 9):
        images.append(dict(id=image_id, file_name=f'{image_id}.png', width=400, height=100))
        for place in range(6):
            box = [60 * place, 10, 40, 50]
            category = int(rng.integers(1, 4))
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, category_id=category, bbox=box)
                | dict(area=2000, iscrowd=0)
            )
            for _ in range(rng.integers(0, 3)):
                shifted = [side + float(rng.uniform(-9, 9)) for side in box]
                detected = category if rng.random() < 0.7 else int(rng.integers(1, 4))
                score = float(rng.random())
                results.append(
                    dict(image_id=image_id, category_id=detected, bbox=shifted, score=score)
                )
    categories = [dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'truth.json').write_text(json.dumps(content))
    (tmp_path / 'results.json').write_text(json.dumps(results))
    return tmp_path / 'truth.json', tmp_path / 'results.json'


def as_supervision(entries, with_score):
    boxes = np.array([entry['bbox'] for entry in entries], float).reshape(-1, 4)
    return supervision.Detections(
        xyxy=np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]),
        class_id=np.array([entry['category_id'] - 1 for entry in entries], int),
        confidence=np.array([entry['score'] for entry in entries]) if with_score else None,
    )


def test_confusions_are_those_of_supervision(files):
    evaluated = evaluate_boxes(*files)
    truths, results = (json.loads(path.read_text()) for path in files)
    numbers = [image['id'] for image in truths['images']]
    # One detection for each object, so that the order of matches does not matter.
    best = {}
    for result in sorted(results, key=lambda each: each['score']):
        best[result['image_id'], round(result['bbox'][0] / 60)] = result
    files[1].write_text(json.dumps(list(best.values())))
    evaluated = evaluate_boxes(*files)
    expected = supervision.ConfusionMatrix.from_detections(
        predictions=[
            as_supervision([r for r in best.values() if r['image_id'] == n], True) for n in numbers
        ],
        targets=[
            as_supervision([a for a in truths['annotations'] if a['image_id'] == n], False)
            for n in numbers
        ],
        classes=CLASSES,
        conf_threshold=0.3,
        iou_threshold=0.5,
    )
    counts = count_confusions(evaluated, score_threshold=0.3)
    np.testing.assert_array_equal(counts, expected.matrix)
    assert counts[:-1, :-1].trace() > 5 and counts[-1].sum() and counts[:, -1].sum()


def test_an_object_is_counted_once_and_ignored_ones_never(files):
    truths = json.loads(files[0].read_text())
    first = truths['annotations'][0]
    result = dict(image_id=1, category_id=first['category_id'], bbox=first['bbox'])
    files[1].write_text(json.dumps([result | dict(score=0.9), result | dict(score=0.8)]))
    counts = count_confusions(evaluate_boxes(*files))
    assert counts[:-1, :-1].sum() == 1 and counts[-1].sum() == 1
    first['iscrowd'] = 1
    files[0].write_text(json.dumps(truths))
    ignored = count_confusions(evaluate_boxes(*files))
    assert ignored[:, :-1].sum() == 0 and ignored.sum() == counts.sum() - 2


def test_lines_are_the_precision_of_pycocotools(files):
    evaluated = evaluate_boxes(*files)
    lines = plot_precision_recall(evaluated, CLASSES).axes[0].lines
    evaluated.summarize()
    assert len(lines) == 3
    assert np.mean([line.get_ydata() for line in lines]) == pytest.approx(evaluated.stats[1])


def test_picture_of_confusions_has_all_numbers(files):
    counts = count_confusions(evaluate_boxes(*files))
    axes = plot_confusions(counts, CLASSES).axes[0]
    assert [int(text.get_text()) for text in axes.texts] == counts.ravel()[:-1].tolist()
