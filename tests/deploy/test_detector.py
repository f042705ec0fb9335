import math
import subprocess
import sys

import pytest
import torch
from making_models import TINY, build_model
from mmdet.structures import DetDataSample
from mmengine.config import Config

from mmevit.deploy import export, fold, load_exported
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.utils.errors import ConfigError

SIZES = ((150, 200), (160, 197))


def make_detector(class_agnostic):
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.model.backbone.arch = TINY
    cfg.model.neck.update(in_channels=[16, 24, 32], out_channels=64)
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    cfg.model.test_cfg.nms = dict(type='nms', iou_threshold=0.5, class_agnostic=class_agnostic)
    return fold(build_model(cfg))


def predict(detector, images):
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)),
        )
        for size in SIZES
    ]
    with torch.no_grad():
        samples = detector(images, samples, mode='predict')
    return [sample.pred_instances for sample in samples]


def check_equal(outputs, expected, tolerance):
    for boxes, scores, labels, wanted in zip(*outputs, expected, strict=True):
        count = len(wanted)
        assert count > 20
        assert torch.allclose(scores[:count], wanted.scores, atol=tolerance)
        assert (labels[count:] == -1).all()
        assert (scores[count:] == 0).all()
        # Those of nearly the same score may change places.
        rows, wanted_rows = (
            torch.cat([boxes, 1e3 * labels[:, None], 1e3 * scores[:, None]], dim=1)
            for boxes, labels, scores in (
                (boxes[:count], labels[:count], scores[:count]),
                (wanted.bboxes, wanted.labels, wanted.scores),
            )
        )
        nearest = (rows[:, None] - wanted_rows[None]).abs().amax(dim=2).amin(dim=0)
        assert nearest.max() < tolerance


@pytest.mark.parametrize('class_agnostic', [True, False], ids=['agnostic', 'by-class'])
def test_detector_matches_mmdet_predict(class_agnostic):
    detector = make_detector(class_agnostic)
    images, sizes = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    with torch.no_grad():
        outputs = make_exportable(detector)(images, sizes)
    check_equal(outputs, predict(detector, images), 1e-6)


def test_onnx_detector_matches_mmdet_predict_at_any_size(tmp_path):
    detector = make_detector(True)
    network = make_exportable(detector)
    # The coarsest map of the example has one pixel, and all its maps fit in one window.
    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    export(network, example, tmp_path / 'detector.onnx', 'onnx', ('batch', 'size'))
    session = load_exported(tmp_path / 'detector.onnx')
    images, sizes = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    check_equal(session(images, sizes), predict(detector, images), 1e-3)
    for shape in ((1, 3, 256, 192), (1, 3, 128, 128), (3, 3, 64, 64), (1, 3, 33, 470)):
        images, sizes = torch.rand(shape), torch.tensor([shape[2:]] * shape[0]).float() - 3
        assert compare(network, session, (images, sizes)) == 0, shape


def test_torchscript_detector_runs_without_mmevit(tmp_path):
    network = make_exportable(make_detector(True))
    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    path = tmp_path / 'detector.torchscript'
    export(network, example, path, 'torchscript', ('batch', 'size'))
    inputs = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    torch.save(inputs, tmp_path / 'inputs.pt')
    code = f"""
import sys, torch, torchvision
sys.modules.update(mmevit=None, mmcv=None, mmengine=None)
torch.save(torch.jit.load('{path}')(*torch.load('{tmp_path}/inputs.pt')), '{tmp_path}/outputs.pt')
"""
    subprocess.run([sys.executable, '-c', code], check=True)
    with torch.no_grad():
        expected = network(*inputs)
    outputs = torch.load(tmp_path / 'outputs.pt')
    assert network.measure_difference(outputs, expected) == 0
    assert (expected[2] >= 0).any()


def test_backbone_of_any_model_is_exportable():
    model = build_model(Config.fromfile('configs/semantic-fpn_evit_m4_digits.py'))
    assert make_exportable(model, 'backbone').output_names == ('stage_0', 'stage_1', 'stage_2')


def test_soft_nms_is_refused():
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ConfigError, match='Models with soft_nms cannot be exported. Set the type'):
        make_exportable(build_model(cfg))


def test_segmentation_in_parts_is_refused():
    cfg = Config.fromfile('configs/semantic-fpn_evit_m4_digits.py')
    cfg.model.test_cfg = dict(mode='slide', crop_size=(96, 96), stride=(64, 64))
    with pytest.raises(ConfigError, match="test_cfg.mode='slide' cannot be exported"):
        make_exportable(build_model(cfg))


def test_difference_is_the_share_of_other_detections():
    network = make_exportable(make_detector(True))
    boxes, scores = 100 * torch.rand(1, 3, 4), torch.tensor([[0.9, 0.8, 0.0]])
    expected = boxes, scores, torch.tensor([[1, 2, -1]])
    swapped = [part.flip(1) for part in expected]
    assert network.measure_difference(swapped, expected) == 0
    more = boxes, scores, torch.tensor([[1, 2, 3]])
    assert network.measure_difference(more, expected) == pytest.approx(1 / 3)
    moved = boxes + torch.tensor([[[1.0], [0.0], [0.0]]]), *expected[1:]
    assert network.measure_difference(moved, expected) == 0.5
    assert math.isnan(network.measure_difference((boxes * math.nan, *expected[1:]), expected))


def test_half_precision_detector_decodes_in_float32(tmp_path):
    network = make_exportable(make_detector(True))
    images, sizes = torch.rand(1, 3, 96, 2112), torch.tensor([[96.0, 2101.0]])
    export(network, (images, sizes), tmp_path / 'half.onnx', 'onnx', dtype='float16')
    boxes, scores, labels = load_exported(tmp_path / 'half.onnx')(images, sizes)
    with torch.no_grad():
        expected = network(images, sizes)
    # The best boxes are the same, to less than the pixels that float16 knows out there.
    nearest = (boxes[0, :5, None] - expected[0][0]).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 0.5
    assert (boxes[boxes > 1024] % 1 != 0).any()
