"""Complete dense models: exported files against the library's own predictions."""

from pathlib import Path

import pytest
import torch
from dense_models import SIZES, check_boxes, make_model, predict

from mmevit.deploy import export, load_exported
from mmevit.deploy.networks import make_exportable

DETECTORS = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']


@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: Path(name).stem)
def test_exported_detector_matches_the_librarys_predictions(name, tmp_path):
    model = make_model(name, tmp_path)
    network = make_exportable(model)
    images = torch.rand(2, 3, 160, 224)
    expected = predict(model, images, SIZES)
    with torch.no_grad():
        check_boxes(network(images, torch.tensor(SIZES).float()), expected)

    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    path = tmp_path / 'model.onnx'
    export(network, example, path, 'onnx', ('batch', 'size'))
    session = load_exported(path)
    check_boxes(session(images, torch.tensor(SIZES).float()), expected)
    images = torch.rand(1, 3, 96, 128)
    check_boxes(session(images, torch.tensor([[96.0, 120.0]])), predict(model, images, [(96, 120)]))
