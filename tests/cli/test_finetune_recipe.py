from pathlib import Path

import pytest

from mmevit.cli.finetune_recipe import choose_size
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
