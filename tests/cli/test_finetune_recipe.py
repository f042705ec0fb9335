from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope

from mmevit.cli.finetune_recipe import choose_size, set_size
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
