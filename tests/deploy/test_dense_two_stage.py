"""Two-stage detectors: exported files against the library's own predictions."""

from pathlib import Path

import pytest
import torch
from dense_models import (
    SIZES,
    check_boxes,
    check_instances,
    check_segments,
    make_model,
    predict,
    spread_outputs,
)
from mmdet.models import HeuristicFusionHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch.nn.functional import interpolate

from mmevit.deploy import export, load_exported
from mmevit.deploy.equivalents.panoptic import fuse_segments
from mmevit.deploy.networks import make_exportable

PANOPTIC = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'
# Each with what spread_outputs() needs.
DETECTORS = {
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': {},
    # Three stages refine boxes and average scores.
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': dict(fc_cls=3, fc_reg=0.2),
    # Boxes are refined six times.
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py': dict(fc_cls=1, fc_reg=0.03),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {},
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': dict(fc_cls=3, fc_reg=0.2),
    'mask-rcnn_evit_m4_digits': {},
    # The config keeps boxes with a score of 0.6.
    PANOPTIC: dict(fc_cls=6),
}


def make_images():
    """Smooth images: on noise, rounding errors of the refined boxes grow with every stage."""
    small = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))
    return interpolate(small, scale_factor=8, mode='bicubic') * 3


@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: Path(name).stem)
def test_exported_detector_matches_the_librarys_predictions(name, tmp_path):
    is_panoptic = name == PANOPTIC
    check = check_segments if is_panoptic else check_instances
    images = make_images()
    model = make_model(name, tmp_path)
    spread_outputs(model, images, **DETECTORS[name])
    network = make_exportable(model)
    # mmdet fuses segments at the original size only.
    expected = predict(model, images, SIZES, rescale=is_panoptic)
    with torch.no_grad():
        check(network(images, torch.tensor(SIZES).float()), expected)

    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    path = tmp_path / 'model.onnx'
    export(network, example, path, 'onnx', ('batch', 'size'))
    session = load_exported(path)
    check(session(images, torch.tensor(SIZES).float()), expected)
    images, size = images[:1, :, :96, :128], (90, 120)
    check(
        session(images, torch.tensor([size]).float()),
        predict(model, images, [size], rescale=is_panoptic),
    )


@pytest.mark.parametrize('min_bbox_size', [0, 70, 1000])
def test_padding_of_proposals_is_never_detected(min_bbox_size, tmp_path):
    images = make_images()
    model = make_model('mask-rcnn_evit_m4_digits', tmp_path)
    spread_outputs(model, images)
    model.test_cfg.rpn.min_bbox_size = min_bbox_size
    # Not even copies of a box are suppressed.
    model.test_cfg.rcnn.nms.iou_threshold = 1.0
    expected = predict(model, images, SIZES)
    with torch.no_grad():
        outputs = make_exportable(model)(images, torch.tensor(SIZES).float())
    check_boxes(outputs, expected, min_count=0)
    counts = [len(sample.pred_instances) for sample in expected]
    assert counts == [0, 0] if min_bbox_size == 1000 else min(counts) > 10


@pytest.mark.parametrize('max_overlap', [0.2, 0.5])
def test_masks_are_fused_like_those_of_the_library(max_overlap):
    torch.manual_seed(0)
    settings = ConfigDict(mask_overlap=max_overlap, stuff_area_limit=300)
    head = HeuristicFusionHead(5, 4, test_cfg=settings)
    count, height, width = 30, 90, 120
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    boxes[3, 2] = boxes[3, 0]  # no area
    probabilities = torch.rand(count, 1, 28, 28) ** 0.5
    detections = dict(
        bboxes=boxes,
        scores=torch.rand(count).sort(descending=True)[0],
        labels=torch.randint(5, (count,)),
    )
    logits = torch.rand(5, height // 10, width // 10).repeat_interleave(10, 1)
    logits = logits.repeat_interleave(10, 2)

    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, probability, box in zip(masks, probabilities, boxes, strict=True):
        pasted, where = _do_paste_mask(probability[None], box[None], height, width)
        mask[where] = pasted[0] >= 0.5
    wanted = head._predict_single(InstanceData(**detections, masks=masks), logits.clone()).sem_seg
    assert wanted.unique().numel() > 8 and {5, 9} & set(wanted.unique().tolist())

    results = InstanceData(**detections, masks=probabilities[:, 0])
    size = torch.tensor(float(height)), torch.tensor(float(width))
    results.set_metainfo(dict(img_shape=size, mask_threshold=0.5))
    assert (fuse_segments(head, results, logits).sem_seg == wanted).float().mean() > 0.999
