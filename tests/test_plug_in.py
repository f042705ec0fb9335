"""The table in docs/plug_in.md: stock models with another backbone and neck, and nothing else."""

import re
from pathlib import Path

import pytest
import torch
from marking import slow_but
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from plug_in_table import DOCS, NECKS, write_config

from mmevit.models import EfficientViT, EfficientViTFPN

SIZES = dict(mmdet=(128, 160), mmseg=(64, 96))
# DDOD has 3x3 deformable convolutions at stride 128.
LARGER_SIZES = dict(ddod=(320, 384))
# What saves time in the heads: proposals, queries and hidden channels.
SMALLER = dict(num=16, nms_pre=100, max_per_img=20, fc_out_channels=64, num_queries=100)


def read_m0(path):
    """Read a config with M0 instead of M4, and smaller heads."""
    text = path.read_text().replace("'m4'", "'m0'").replace('128, 256, 384', '64, 128, 192')
    path.write_text(text)
    cfg = Config.fromfile(path)
    shrink(cfg.model)
    return cfg


def shrink(part):
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if key in SMALLER:
            part[key] = SMALLER[key]
        elif isinstance(value, (dict, list)):
            shrink(value)


def test_the_table_names_26_detectors_and_3_segmentors():
    scopes = [name.partition('::')[0] for name in NECKS]
    assert (scopes.count('mmdet'), scopes.count('mmseg')) == (26, 3)


# For each neck the model that comes first in the table.
FAST = {neck: name for name, neck in reversed(NECKS.items())}.values()


@pytest.mark.parametrize('name', slow_but(FAST, NECKS), ids=lambda name: Path(name).stem)
def test_stock_model_with_this_backbone_trains_all_of_it_and_predicts(name, tmp_path):
    train_and_predict(name, read_m0(write_config(tmp_path / 'user.py', name, NECKS[name])))


@pytest.mark.parametrize(
    ('name', 'neck', 'others'),
    [
        (
            'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            'dict(in_channels=[128, 256, 384])',
            '',
        ),
        (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            "dict(type='EfficientViTFPN', in_channels=[128, 256, 384], out_channels=256, "
            'num_outs=4, num_upsample_levels=2)',
            'panoptic_head=dict(in_channels=[256, 256, 256, 256])',
        ),
    ],
    ids=['deformable-detr', 'mask2former'],
)
def test_the_other_ways_below_the_table_work_too_with_fewer_parameters(
    name, neck, others, tmp_path
):
    config = write_config(tmp_path / 'lean.py', name, neck, others)
    lean = train_and_predict(name, read_m0(config))
    table = read_m0(write_config(tmp_path / 'table.py', name, NECKS[name]))
    with torch.device('meta'):
        table = MODELS.build(table.model)
    lean, table = (sum(value.numel() for value in model.parameters()) for model in (lean, table))
    assert lean < table


def test_the_lines_above_the_table_load_weights_and_freeze_their_batch_norm(tmp_path):
    weights = EfficientViT('m0').state_dict()
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={f'backbone.{key}': v for key, v in weights.items()}), path)
    lines = re.search('```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[1]
    (tmp_path / 'user.py').write_text(lines.replace('evit://m4', f'evit://{path}'))
    cfg = read_m0(tmp_path / 'user.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    assert all(model.backbone.state_dict()[key].equal(value) for key, value in weights.items())
    assert not model.backbone.stem[0].norm.training


def test_the_lines_for_test_time_augmentation_load():
    lines = re.findall('```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[-1]
    cfg = Config.fromstring(lines, '.py')
    assert cfg.tta_model.type == 'DetTTAModel' and cfg.model.type == 'ATSS'


def train_and_predict(name, cfg):
    scope = name.partition('::')[0]
    init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    # What a runner tells its model, and what its data loader gives.
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
    size = LARGER_SIZES.get(re.split('[:/]+', name)[1], SIZES[scope])
    model.data_preprocessor.size = size  # instead of 512x512
    model.data_preprocessor.batch_augments = None  # instead of 1024x1024
    if name.endswith('ssd300_coco.py'):
        size = (300, 300)  # its last maps are made for that
    is_detector = scope == 'mmdet'
    batch = make_detection_batch(cfg, size) if is_detector else make_segmentation_batch(size)

    losses = model.train()(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    gradient = model.backbone.stem[0].conv.weight.grad
    assert gradient.abs().max() > 0 and gradient.isfinite().all()
    # A parameter without a gradient would end distributed training.
    finer = [part for part in model.neck.modules() if isinstance(part, EfficientViTFPN)]
    for part in (model.backbone, *finer):
        assert [key for key, value in part.named_parameters() if value.grad is None] == []

    with torch.no_grad():
        data = model.eval().data_preprocessor(batch, training=False)
        predictions = model(**data, mode='predict')
    assert len(predictions) == len(batch['inputs'])
    for prediction in predictions:
        instances = prediction.get('pred_instances')
        maps = [prediction.get(key) for key in ('pred_sem_seg', 'pred_panoptic_seg')]
        maps = [segments.shape for segments in maps if segments is not None]
        if instances is not None and 'masks' in instances:
            maps.append(instances.masks.shape[-2:])
        assert maps == [size] * len(maps) and (maps or instances.bboxes.shape[1] == 4)
    return model


def make_detection_batch(cfg, size):
    """An image with two objects, annotated as the config's training pipeline loads them."""
    dataset = cfg.train_dataloader.dataset
    load = next(
        step for step in dataset.get('dataset', dataset).pipeline if 'Annotations' in step.type
    )
    is_panoptic = load.type == 'LoadPanopticAnnotations'
    return demo_mm_inputs(
        1,
        (3, *size),
        num_items=[2],
        num_classes=2,
        with_mask=load.get('with_mask', is_panoptic),
        with_semantic=load.get('with_seg', is_panoptic),
    )


def make_segmentation_batch(size):
    """Two images, since heads that pool to one pixel have batch norm after it."""
    metainfo = dict(img_shape=size, ori_shape=size, pad_shape=size)
    segments = PixelData(data=torch.randint(2, (1, *size)))
    sample = SegDataSample(gt_sem_seg=segments, metainfo=metainfo)
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    return dict(inputs=[image, image.flip(2)], data_samples=[sample, sample.clone()])
