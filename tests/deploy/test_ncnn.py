"""ncnn files against PyTorch."""

import numpy as np
import pytest
import torch
from making_models import IMAGES, METADATA
from mmdet.models import RetinaHead
from mmdet.models.utils import filter_scores_and_topk
from mmengine.config import Config
from mmengine.structures import InstanceData
from test_complete_models import make_case
from torch import nn

pytest.importorskip('pnnx')
pytest.importorskip('ncnn')

from mmevit.deploy import export, load_exported
from mmevit.deploy.exporting import compare
from mmevit.deploy.networks import make_exportable
from mmevit.runtime.suppression import select_and_suppress
from mmevit.utils.errors import ConfigError


def test_maps_metadata_and_smaller_weights(network, tmp_path):
    sizes = []
    for dtype, tolerance in (('float32', 1e-5), ('float16', 1e-2)):
        path = tmp_path / 'network.param'
        export(network, IMAGES, path, 'ncnn', dtype=dtype, metadata=METADATA)
        session = load_exported(path)
        assert session.metadata == METADATA
        assert compare(network, session, (IMAGES,)) < tolerance
        sizes.append(path.with_suffix('.bin').stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


def test_one_image_or_several(network, tmp_path):
    export(network, IMAGES[:1], tmp_path / 'network.param', 'ncnn')
    session = load_exported(tmp_path / 'network.param')
    together = session(IMAGES)
    for index, image in enumerate(IMAGES):
        for map_, one in zip(together, session(image[None]), strict=True):
            assert torch.equal(map_[index], one[0])


def test_unsupported_operators_are_refused(tmp_path):
    class Product(nn.Module):
        def forward(self, images):
            return images.cumprod(dim=1)

    with pytest.raises(ConfigError, match=r'ncnn cannot run this model \(torch.cumprod'):
        export(Product(), torch.rand(1, 3, 4, 4), tmp_path / 'model.param', 'ncnn')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(('nms_pre', 'min_bbox_size'), [(20, -1), (1000, 9)])
def test_selection_is_that_of_mmdet(nms_pre, min_bbox_size):
    torch.manual_seed(0)
    level_sizes, size = [60, 30], (40, 50)
    corners = torch.rand(2, 90, 2) * 50 - 5
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 90, 2) * 20], dim=2)
    scores = torch.rand(2, 90, 3)
    settings = dict(iou_threshold=0.5, max_num=25, class_agnostic=False)
    found = select_and_suppress(
        boxes.numpy(),
        scores.numpy(),
        np.float32([size, size]),
        level_sizes,
        nms_pre,
        0.3,
        min_bbox_size,
        **settings,
    )
    head = RetinaHead(num_classes=3, in_channels=8)
    for index in range(2):
        levels = zip(boxes[index].split(level_sizes), scores[index].split(level_sizes), strict=True)
        kept = [filter_scores_and_topk(best, 0.3, nms_pre, part) for part, best in levels]
        best, labels, _, parts = (list(parts) for parts in zip(*kept, strict=True))
        parts = torch.cat(parts)
        parts[:, 0::2].clamp_(0, size[1])
        parts[:, 1::2].clamp_(0, size[0])
        results = InstanceData(bboxes=parts, scores=torch.cat(best), labels=torch.cat(labels))
        cfg = Config(dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=25))
        cfg.min_bbox_size = min_bbox_size
        expected = head._bbox_post_process(results, cfg, img_meta={})
        count = len(expected)
        assert count > 5
        for array, name in zip(found, ('bboxes', 'scores', 'labels'), strict=True):
            assert np.array_equal(array[index, :count], expected[name].numpy())
        assert not found[1][index, count:].any()


def test_detectors_with_other_heads_are_refused(tmp_path):
    model, batches = make_case('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', tmp_path)
    images, sizes, _ = batches[0]
    with pytest.raises(ConfigError, match='The target cannot select boxes, .* SSDHead only. Use'):
        export(make_exportable(model), (images, sizes), tmp_path / 'model.param', 'ncnn')
    assert not (tmp_path / 'model.param').exists()
