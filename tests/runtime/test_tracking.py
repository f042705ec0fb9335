"""The example of docs/predict.md that tracks objects in a video."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision
from making_exported import write_exported

from mmevit.runtime import Predictor

PAGE = Path(__file__).parents[2] / 'docs/predict.md'


@pytest.fixture
def arrays():
    return dict(
        boxes=np.float32([[30, 40, 60, 90], [100, 50, 140, 100], [5, 5, 9, 9], [0, 0, 0, 0]]),
        scores=np.float32([0.9, 0.8, 0.1, 0]),
        labels=np.int64([0, 1, 2, -1]),
    )


def test_arrays_fit_detections(arrays, tmp_path):
    masks = np.ones((4, 28, 28), np.float32)
    path = write_exported(
        tmp_path / 'm.onnx', arrays | dict(masks=masks), masks=dict(kind='box', threshold=0.5)
    )
    found = Predictor(path)(np.zeros((120, 160, 3), np.uint8))
    detections = supervision.Detections(
        xyxy=found.boxes, confidence=found.scores, class_id=found.labels, mask=found.masks
    )
    assert len(detections) == 3
    np.testing.assert_allclose(detections.area, [30 * 50, 40 * 50, 16])


def test_documented_example_keeps_the_number_of_an_object(arrays, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_exported(tmp_path / 'model.onnx', arrays)
    writer = cv2.VideoWriter('clip.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 25, (160, 120))
    for _ in range(5):
        writer.write(np.zeros((120, 160, 3), np.uint8))
    writer.release()
    (code,) = re.findall(r'```python\n([^`]*ByteTrack[^`]*)```', PAGE.read_text())
    exec(compile(code, str(PAGE), 'exec'), {})
    lines = capsys.readouterr().out.splitlines()
    # Two tracks with the same numbers in all frames; the third object has too low a score.
    assert len(lines) == 10
    first, last = ({line.partition(':')[2] for line in part} for part in (lines[:2], lines[-2:]))
    assert first == last and len(first) == 2
