"""Complete one-stage detectors: exported files against the library's own predictions."""

import re
from pathlib import Path

import pytest
import torch
from dense_models import SIZES, check_boxes, make_model, predict
from marking import slow_but

from mmevit.deploy import export, load_exported
from mmevit.deploy.networks import make_exportable

DETECTORS = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'mmdet::foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'mmdet::vfnet/vfnet_r50_fpn_1x_coco.py',
    'mmdet::ddod/ddod_r50_fpn_1x_coco.py',
    'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'mmdet::paa/paa_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'mmdet::ssd/ssd300_coco.py',
]
CLASSIFIERS = r'(\w*conv_cls|\w*conv_obj|[a-z]+_cls|cls_prob_module\.2)(\.\d+)?'
REGRESSORS = r'(conv_reg|rtm_reg|multi_level_conv_reg)(\.\d)?'
# The size of the batch, without padding of its two images, and of another image.
SHAPES = dict(
    # The library cannot convolve maps of stride 128 that are smaller than the kernel.
    ddod=((320, 384), ((310, 384), (320, 330)), (288, 352)),
    # The convolutions after the neck were made for this size.
    ssd=((300, 300), ((300, 280), (250, 300)), (320, 352)),
)
DEFAULT_SHAPES = (160, 224), SIZES, (96, 128)


def spread(model, images, sizes):
    """Scale the last convolutions until boxes overlap and scores differ."""
    kind = type(model.bbox_head).__name__
    # Names of layers, the standard deviation of their output, and their bias.
    layers = {CLASSIFIERS: (1, 0)}
    if kind == 'SSDHead':  # has a softmax
        layers = {r'cls_convs\.\d\.0': (3, 0)}
    if kind in ('FCOSHead', 'RTMDetSepBNHead', 'YOLOXHead'):
        layers[REGRESSORS] = (0.5, 1)
    handles = {}
    for name, layer in model.bbox_head.named_modules():
        for pattern, (deviation, bias) in layers.items():
            if re.fullmatch(pattern, name) and hasattr(layer, 'weight'):

                def scale(layer, inputs, output, deviation=deviation, bias=bias):
                    layer.weight.data *= deviation / output.std()
                    layer.bias.data.fill_(bias)
                    handles.pop(layer).remove()

                handles[layer] = layer.register_forward_hook(scale)
    assert handles
    predict(model, images, sizes)
    assert not handles


def make_detector(name, folder):
    """Build a model, and choose images and their sizes without padding, and the size of another."""
    shape, sizes, other = SHAPES.get(re.split('[:/]+', name)[1], DEFAULT_SHAPES)
    model = make_model(name, folder)
    # mmcv's deformable convolutions need it.
    model.to(memory_format=torch.contiguous_format)
    if name.endswith('ssd300_coco.py'):
        model.bbox_head.loss_cls = None  # missing in mmdet
    if name.endswith('rtmdet_tiny_8xb32-300e_coco.py'):
        model.bbox_head.test_cfg.nms_pre = 30000  # as in the config
    images = torch.rand(2, 3, *shape)
    spread(model, images, sizes)
    return model, images, sizes, other


@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: Path(name).stem)
def test_network_matches_the_librarys_predictions(name, tmp_path):
    model, images, sizes, _ = make_detector(name, tmp_path)
    with torch.no_grad():
        outputs = make_exportable(model)(images, torch.tensor(sizes).float())
    check_boxes(outputs, predict(model, images, sizes))


@pytest.mark.parametrize(
    'name', slow_but(DETECTORS[:1], DETECTORS), ids=lambda name: Path(name).stem
)
def test_exported_detector_matches_the_librarys_predictions(name, tmp_path):
    model, images, sizes, other = make_detector(name, tmp_path)
    path = tmp_path / 'model.onnx'
    example = images[:1], torch.tensor(sizes[:1]).float()
    export(make_exportable(model), example, path, 'onnx', ('batch', 'size'))
    session = load_exported(path)
    check_boxes(session(images, torch.tensor(sizes).float()), predict(model, images, sizes))
    images, sizes = torch.rand(1, 3, *other), [(other[0], other[1] - 9)]
    check_boxes(session(images, torch.tensor(sizes).float()), predict(model, images, sizes))
