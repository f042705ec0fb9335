"""Boxes on wide images, whose coordinates half precision rounds to several pixels."""

import onnx
import pytest
import torch
from dense_models import make_model

from mmevit.deploy import TARGETS, export, load_exported
from mmevit.deploy.networks import make_exportable

# A model whose anchors are constants, and one that decodes boxes by a matrix product.
DETECTORS = dict(
    anchors='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    distributions='mmdet::gfl/gfl_r50_fpn_1x_coco.py',
)
OPTIONS = dict(
    model__bbox_head__num_classes=1,
    model__test_cfg__nms_pre=30000,
    model__test_cfg__max_per_img=1000,
    model__test_cfg__score_thr=0.0,
    model__test_cfg__nms__iou_threshold=1.0,
)


@pytest.mark.slow
@pytest.mark.parametrize('name', DETECTORS.values(), ids=DETECTORS)
def test_half_precision_decodes_boxes_in_float32(name, tmp_path):
    model = make_model(name, tmp_path, **OPTIONS)
    # The same offsets everywhere, which half precision represents exactly.
    layers = [layer for key, layer in model.named_modules() if key.endswith('_reg')]
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        layer.bias.data = torch.arange(len(layer.bias)) % 4 / 4
    assert layers
    network = make_exportable(model)
    images, sizes = torch.rand(1, 3, 64, 1344), torch.tensor([[64.0, 1333.0]])
    model.bbox_head.test_cfg.max_per_img = 30000  # all boxes, of which rounding selects others
    with torch.no_grad():
        candidates = make_exportable(model)(images, sizes)[0][0]
    assert (candidates[:, 0] > 1024).sum() > 100
    for target, dtype in (
        ('onnx', 'float16'),
        ('openvino', 'float16'),
        ('openvino', 'bfloat16'),
        ('torchscript', 'bfloat16'),
    ):
        path = tmp_path / f'{dtype}{TARGETS[target]}'
        export(network, (images, sizes), path, target, dtype=dtype)
        boxes = load_exported(path)(images, sizes)[0][0]
        assert (boxes[:, 0] > 1024).sum() > 10
        distances = torch.cdist(boxes, candidates, p=torch.inf).amin(dim=1)
        assert distances.max() < 1e-2, (target, dtype)


@pytest.mark.slow
def test_int8_quantizes_only_what_runs_for_the_batch(tmp_path):
    network = make_exportable(make_model(DETECTORS['distributions'], tmp_path))
    inputs = torch.rand(1, 3, 64, 96), torch.tensor([[64.0, 96.0]])
    export(network, inputs, tmp_path / 'int8.onnx', 'onnx', dtype='int8', batches=[inputs])
    graph = onnx.load(tmp_path / 'int8.onnx').graph
    (scan,) = (node for node in graph.node if node.op_type == 'Scan')
    assert 'QuantizeLinear' in {node.op_type for node in graph.node}
    assert not {'QuantizeLinear', 'DequantizeLinear'} & {
        node.op_type for node in scan.attribute[0].g.node
    }
