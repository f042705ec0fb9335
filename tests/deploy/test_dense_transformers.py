"""Complete transformers: exported files against the library's own predictions."""

import pytest
import torch
from dense_models import SIZES, check_boxes, check_image_masks, check_segments, make_model, predict

from mmevit.deploy import export, load_exported
from mmevit.deploy.networks import make_exportable

DETRS = dict(
    deformable='mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    dino='mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
)
INSTANCE = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
PANOPTIC = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py'
# The last one has maps whose size is not that of the images divided by the stride.
BATCHES = [((160, 224), SIZES), ((96, 128), [(96, 120)]), ((155, 211), [(155, 211), (101, 203)])]


@pytest.mark.parametrize('name', DETRS.values(), ids=DETRS)
def test_detr_matches_the_librarys_predictions(name, tmp_path):
    model = make_model(name, tmp_path)
    check(make_exportable(model), model)


@pytest.mark.slow
@pytest.mark.parametrize('name', DETRS.values(), ids=DETRS)
def test_exported_detr_matches_the_librarys_predictions(name, tmp_path):
    model = make_model(name, tmp_path)
    check(write(model, tmp_path), model)


def test_mask2former_matches_the_librarys_instances(tmp_path):
    model = make_model(INSTANCE, tmp_path)
    check(make_exportable(model), model)


@pytest.mark.slow
def test_exported_mask2former_matches_the_librarys_instances(tmp_path):
    model = make_model(INSTANCE, tmp_path)
    check(write(model, tmp_path), model)


@pytest.mark.parametrize('filter_low_score', [False, True])
def test_mask2former_matches_the_librarys_segments(filter_low_score, tmp_path):
    model = make_panoptic_model(tmp_path)
    model.panoptic_fusion_head.test_cfg.filter_low_score = filter_low_score
    check(make_exportable(model), model)


@pytest.mark.slow
def test_exported_mask2former_matches_the_librarys_segments(tmp_path):
    model = make_panoptic_model(tmp_path)
    check(write(model, tmp_path), model)


def make_panoptic_model(folder):
    """Build a model that keeps masks although others cover most of them."""
    model = make_model(PANOPTIC, folder)
    model.panoptic_fusion_head.test_cfg.iou_thr = 0.1
    return model


def write(model, folder):
    """Export a model, and load the file."""
    path = folder / 'model.onnx'
    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    export(make_exportable(model), example, path, 'onnx', ('batch', 'size'))
    return load_exported(path)


def check(network, model):
    """Compare the predictions for batches of several sizes."""
    torch.manual_seed(0)
    for shape, sizes in BATCHES:
        images = torch.rand(len(sizes), 3, *shape)
        expected = predict(model, images, sizes)
        with torch.no_grad():
            outputs = network(images, torch.tensor(sizes).float())
        if len(outputs) == 1:
            check_segments(outputs, expected, min_count=3)
        elif len(outputs) == 3:
            check_boxes(outputs, expected)
        else:
            # Ours are sorted, and those without a pixel are padding.
            for sample in expected:
                found = sample.pred_instances
                found = found[found.scores.argsort(descending=True)]
                sample.pred_instances = found[found.scores > 0]
            check_boxes(outputs, expected)
            check_image_masks(outputs, expected, 0, shape)
