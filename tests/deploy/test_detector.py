import math
import subprocess
import sys

import pytest
import torch
from dense_models import SIZES, check_boxes, make_model, predict
from making_models import TINY, build_model
from mmengine.config import Config

from mmevit.cli.export import check_network, find_divisor
from mmevit.deploy import export, fold, load_exported, to_onnx, to_torchscript
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.utils.errors import ConfigError


def make_detector(class_agnostic):
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.model.backbone.arch = TINY
    cfg.model.neck.update(in_channels=[16, 24, 32], out_channels=64)
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    cfg.model.test_cfg.nms = dict(type='nms', iou_threshold=0.5, class_agnostic=class_agnostic)
    return fold(build_model(cfg))


@pytest.mark.parametrize('class_agnostic', [True, False], ids=['agnostic', 'by-class'])
def test_detector_matches_mmdet_predict(class_agnostic):
    detector = make_detector(class_agnostic)
    images, sizes = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    with torch.no_grad():
        outputs = make_exportable(detector)(images, sizes)
    check_boxes(outputs, predict(detector, images, SIZES))


def test_onnx_detector_matches_mmdet_predict_at_any_size(tmp_path):
    detector = make_detector(True)
    network = make_exportable(detector)
    # The coarsest map of the example has one pixel, and all its maps fit in one window.
    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    export(network, example, tmp_path / 'detector.onnx', 'onnx', ('batch', 'size'))
    session = load_exported(tmp_path / 'detector.onnx')
    images, sizes = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    check_boxes(session(images, sizes), predict(detector, images, SIZES))
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


def test_classifier_of_several_labels_is_refused():
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    cfg.model.head = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=192)
    with pytest.raises(ConfigError, match='MultiLabelLinearClsHead cannot be exported'):
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
    nothing = 0 * boxes, 0 * scores, torch.full((1, 3), -1)
    assert network.measure_difference(nothing, nothing) == 0
    assert network.measure_difference(nothing, expected) == 1
    more = boxes, scores, torch.tensor([[1, 2, 3]])
    assert network.measure_difference(more, expected) == pytest.approx(1 / 3)
    moved = boxes + torch.tensor([[[1.0], [0.0], [0.0]]]), *expected[1:]
    assert network.measure_difference(moved, expected) == 0.5
    assert math.isnan(network.measure_difference((boxes * math.nan, *expected[1:]), expected))


def test_difference_counts_masks_with_other_pixels():
    network = make_exportable(make_detector(True))
    network.metadata = dict(masks=dict(kind='box', threshold=0.5))
    scores, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[1, 1, 2]])
    boxes, masks = torch.rand(1, 3, 4), torch.rand(1, 3, 28, 28)
    expected = boxes, scores, labels, masks
    assert network.measure_difference(expected, expected) == 0
    assert network.measure_difference((*expected[:3], 0 * masks), expected) == 1
    masks = torch.cat([masks[:, :2], 1 - masks[:, 2:]], dim=1)
    assert network.measure_difference((*expected[:3], masks), expected) == pytest.approx(1 / 3)


def test_graph_that_differs_from_the_model_is_refused(capsys):
    network = make_exportable(make_detector(True))
    inputs = torch.rand(1, 3, 96, 96), torch.tensor([[96.0, 96.0]])
    check_network(network, inputs)
    assert capsys.readouterr().out == ''
    network.predict.model.bbox_head.test_cfg.nms.iou_threshold = 0.1
    with pytest.raises(ConfigError, match='cannot be exported, since the graph for it differs'):
        check_network(network, inputs)


def test_model_that_detects_nothing_is_reported(capsys):
    detector = make_detector(True)
    detector.test_cfg.score_thr = 1.0
    check_network(make_exportable(detector), (torch.rand(1, 3, 64, 64), torch.full((1, 2), 64.0)))
    assert 'The model detects nothing' in capsys.readouterr().out


@pytest.mark.parametrize('size', [(248, 248), (240, 250), (64, 96)])
def test_divisor_of_sizes_is_found_from_any_size(size, tmp_path):
    rtmdet = make_exportable(make_model('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', tmp_path))
    assert find_divisor(rtmdet, size, is_fixed=False) == 32
    assert find_divisor(make_exportable(make_detector(True)), size, is_fixed=False) == 1


@pytest.mark.parametrize(
    ('limit', 'max_num', 'expected'), [(100, None, 100), (100, 50, 50), (-1, None, 1000)]
)
def test_smaller_limit_of_the_number_of_boxes_counts(limit, max_num, expected):
    detector = make_detector(True)
    detector.test_cfg.max_per_img = limit
    if max_num:
        detector.test_cfg.nms.max_num = max_num
    with torch.no_grad():
        boxes, *_ = make_exportable(detector)(torch.rand(1, 3, 64, 64), torch.full((1, 2), 64.0))
    assert boxes.shape == (1, expected, 4)


def test_torchscript_has_all_operators_without_mmevit():
    assert set(to_onnx.OPERATORS) <= set(to_torchscript.FUNCTIONS)
