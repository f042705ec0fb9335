"""The table of other libraries in docs/plug_in.md. They are not among the requirements."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_models import make_confident
from marking import slow_but
from mmdet import testing
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.structures import InstanceData
from plug_in_table import DOCS, OTHERS, write_settings
from test_plug_in import shrink

SIZE = (128, 160)


def make_rotated_boxes(training):
    from mmrotate.testing import demo_mm_inputs

    return demo_mm_inputs(2, (3, *SIZE), num_items=[2, 2], num_classes=2, use_box_type=True)


def make_poses(training):
    from mmpose.testing import get_packed_inputs

    return get_packed_inputs(2)


def make_boxes(training):
    batch = testing.demo_mm_inputs(2, (3, *SIZE), num_items=[2, 2], num_classes=2)
    if not training:
        return batch
    # The layout of mmyolo.datasets.yolov5_collate.
    rows = []
    for index, sample in enumerate(batch['data_samples']):
        labels, boxes = sample.gt_instances.labels[:, None], sample.gt_instances.bboxes
        rows.append(torch.cat([labels.new_full(labels.shape, index), labels, boxes], dim=1))
    samples = dict(bboxes_labels=torch.cat(rows))
    return dict(inputs=torch.stack(batch['inputs']), data_samples=samples)


def make_text(training):
    from mmocr.structures import TextDetDataSample

    metainfo = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0))
    sample = TextDetDataSample(metainfo=metainfo)
    polygon = np.array([20, 20, 100, 20, 100, 60, 20, 60], dtype=np.float32)
    ignored = torch.tensor([False])
    sample.gt_instances = InstanceData(polygons=[polygon], ignored=ignored, labels=torch.zeros(1))
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    return dict(inputs=[image, image.flip(2)], data_samples=[sample, sample.clone()])


BATCHES = dict(mmrotate=make_rotated_boxes, mmpose=make_poses, mmyolo=make_boxes, mmocr=make_text)
RESULTS = dict(
    mmrotate=('bboxes', 'scores', 'labels'),
    mmpose=('keypoints', 'keypoint_scores'),
    mmyolo=('bboxes', 'scores', 'labels'),
    mmocr=('polygons', 'scores'),
)


def test_the_table_names_models_of_each_library():
    assert set(BATCHES) == {name.partition('::')[0] for name in OTHERS}


@pytest.fixture
def imports(request, tmp_path, monkeypatch):
    """The custom imports of a config, after which its library can be imported."""
    library = request.getfixturevalue('name').partition('::')[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f'{library} is not installed. See the other libraries in docs/plug_in.md.')
    lines = re.search('```python\n([^`]*?import mmyolo.*?)```', DOCS.read_text(), re.DOTALL)[1]
    if library not in lines:
        return ['mmevit']
    (tmp_path / 'allow_newer_mmcv.py').write_text(lines.replace('mmyolo', library))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'allow_newer_mmcv', raising=False)
    return ['allow_newer_mmcv', 'mmevit']


# For each library the model that comes first in the table.
FAST = {name.partition('::')[0]: name for name in reversed(OTHERS)}.values()


@pytest.mark.parametrize('name', slow_but(FAST, OTHERS), ids=lambda name: Path(name).stem)
def test_stock_model_with_this_backbone_trains_saves_loads_and_predicts(name, imports, tmp_path):
    library = name.partition('::')[0]
    cfg = read_m0(write_settings(tmp_path / 'user.py', name, OTHERS[name], imports))
    init_default_scope(library)
    model = build(cfg).train()
    model.init_weights()
    make_confident(model)
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0, max_epochs=1))
    model.data_preprocessor.batch_augments = None  # instead of 1024x1024
    data = model.data_preprocessor(BATCHES[library](training=True), training=True)
    stem = model.backbone.stem[0].conv.weight
    before = stem.clone()
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert loss.isfinite()
    # A parameter without a gradient would end distributed training.
    assert [key for key, value in model.named_parameters() if value.grad is None] == []
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert stem.isfinite().all() and not stem.equal(before)

    path = str(tmp_path / 'model.pth')
    save_checkpoint(dict(state_dict=model.state_dict()), path)
    loaded = build(cfg)
    load_checkpoint(loaded, path, strict=True)
    batch = BATCHES[library](training=False)
    expected, found = (predict(network.eval(), batch, library) for network in (model, loaded))
    assert all(map(np.array_equal, expected, found)) and len(expected) == len(found)


def read_m0(path):
    """Read a config with M0 instead of M4, and smaller heads."""
    text = path.read_text().replace("'m4'", "'m0'").replace('128, 256, 384', '64, 128, 192')
    path.write_text(text.replace('in_channels=384', 'in_channels=192'))
    cfg = Config.fromfile(path)
    shrink(cfg.model)
    if "'mmrotate::rotated_fcos" in text or "'mmrotate::rotated_rtmdet" in text:
        # mmcv has RotatedIoULoss for GPUs only.
        cfg.model.bbox_head.loss_bbox = dict(type='GDLoss', loss_type='gwd')
    return cfg


def build(cfg):
    return revert_sync_batchnorm(MODELS.build(cfg.model))


@torch.no_grad()
def predict(model, batch, library):
    """Return the outputs of the network and the results of both images."""
    data = model.data_preprocessor(batch, training=False)
    outputs = list(flatten(model(**data, mode='tensor')))
    assert outputs and not any(values.isnan().any() for values in outputs)
    samples = model(**data, mode='predict')
    assert len(samples) == 2
    results = [sample.pred_instances[key] for sample in samples for key in RESULTS[library]]
    return [np.asarray(getattr(values, 'tensor', values)) for values in (*outputs, *results)]


def flatten(outputs):
    if torch.is_tensor(outputs):
        yield outputs
    else:
        for part in outputs or ():  # RTMDet of mmyolo has no third output
            yield from flatten(part)
