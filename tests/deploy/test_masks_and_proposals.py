"""What complete models do with padding of proposals, and with overlapping masks."""

import pytest
import torch
from dense_models import SIZES, check_boxes, check_segments, predict
from mmdet.models import HeuristicFusionHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from test_complete_models import make_case

from mmevit.deploy.equivalents.panoptic import fuse_segments
from mmevit.deploy.networks import make_exportable


@pytest.mark.parametrize('min_bbox_size', [0, 70, 1000])
def test_padding_of_proposals_is_never_detected(min_bbox_size, tmp_path):
    model, ((images, sizes, _), _) = make_case('mask-rcnn_evit_m4_digits', tmp_path)
    model.test_cfg.rpn.min_bbox_size = min_bbox_size
    # Not even copies of a box are suppressed.
    model.test_cfg.rcnn.nms.iou_threshold = 1.0
    expected = predict(model, images, SIZES)
    with torch.no_grad():
        outputs = make_exportable(model)(images, sizes)
    check_boxes(outputs, expected, min_count=0)
    counts = [len(sample.pred_instances) for sample in expected]
    assert counts == [0, 0] if min_bbox_size == 1000 else min(counts) > 10


def test_pixels_of_low_score_can_be_labelled_like_those_of_the_library(tmp_path):
    name = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
    model, ((images, sizes, before), *_) = make_case(name, tmp_path)
    model.panoptic_fusion_head.test_cfg.filter_low_score = False
    expected = predict(model, images, SIZES)
    segments = [sample.pred_panoptic_seg.sem_seg for sample in (before[0], expected[0])]
    assert not torch.equal(*segments)
    with torch.no_grad():
        check_segments(make_exportable(model)(images, sizes)[0], expected)


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
