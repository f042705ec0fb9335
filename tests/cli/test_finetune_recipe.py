import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from mmevit.cli import finetune_recipe
from mmevit.cli.finetune_recipe import choose_size, set_schedule, set_size
from mmevit.datasets.formats import LabelledData, LabelledImage


@pytest.mark.parametrize(
    ('sizes', 'side', 'chosen'),
    [
        ([(480, 640)], 640, (480, 640)),
        ([(480, 640)], 416, (320, 416)),
        ([(3000, 4000), (3000, 4000), (600, 800)], 640, (480, 640)),
        ([(640, 480), (480, 640)], 640, (640, 640)),
        ([(192, 192)], 640, (192, 192)),
        ([(20, 2000)], 640, (32, 640)),
    ],
)
def test_image_size_follows_the_data(sizes, side, chosen):
    images = [LabelledImage('', *size, ()) for size in sizes]
    assert choose_size(LabelledData(Path(), (), dict(train=images)), side) == chosen


def test_small_images_and_images_without_objects_are_trained_on(tmp_path):
    cfg = Config.fromfile('configs/_base_/finetune_detection.py').train_dataloader.dataset
    images = [dict(id=n, file_name=f'{n}.png', height=20, width=64) for n in (1, 2)]
    annotation = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
    content = dict(images=images, annotations=[annotation], categories=[dict(id=1, name='cell')])
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(content))
    cfg.update(data_root='', ann_file=str(path), metainfo=dict(classes=('cell',)), pipeline=[])
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert len(DATASETS.build(cfg)) == 2


@pytest.mark.parametrize('recipe', ['detection', 'segmentation'])
def test_large_images_are_cropped_to_the_height_and_width_that_are_set(recipe):
    cfg = Config.fromfile(f'configs/_base_/finetune_{recipe}.py')
    cfg.model = dict(data_preprocessor=dict(size=None))
    set_size(cfg, (96, 128))
    (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    image = np.zeros((200, 300, 3), np.uint8)
    maps = dict(gt_seg_map=image[..., 0], seg_fields=['gt_seg_map'])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        results = TRANSFORMS.build(crop)(dict(img=image, img_shape=image.shape[:2], **maps))
    assert results['img'].shape == (96, 128, 3)


def test_larger_images_are_kept_for_four_fifths_of_the_usual_epochs(monkeypatch):
    cfg = Config.fromfile('configs/_base_/finetune_detection.py')
    cfg.model = dict(backbone=dict(), data_preprocessor=dict())
    (crop,) = (step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop')
    # 50 epochs of 320 x 416 pixels in half an hour; the usual number is 59.
    seconds_per_pixel = 0.85 * 1800 / (205 * 50.5 * 320 * 416)
    monkeypatch.setattr(
        finetune_recipe, 'time_images', lambda _: (np.prod(crop.crop_size) * seconds_per_pixel, 0)
    )
    images = [LabelledImage('', 480, 640, ())] * 205
    args = Namespace(epochs=None, minutes=30, image_size=None, launcher='none')
    set_schedule(cfg, args, LabelledData(Path(), (), dict(train=images, val=images)))
    assert crop.crop_size == (416, 320)
    assert cfg.train_cfg.max_epochs == 50
