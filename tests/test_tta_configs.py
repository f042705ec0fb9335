from math import prod

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

# The others differ from one of these only in their network: see tests/test_configs.py and
# tests/test_classification_configs.py.
CONFIGS = (
    'evit_m0_digits',
    'evit_m4_in1k',
    'evit_m5_in1k-384',
    'evit_m5_in1k-512',
    'evit_m5_cars',
    'evit_m5_cifar10',
    'evit_m5_finetune',
    'mask-rcnn_evit_m4',
    'mask-rcnn_evit_m4_digits',
    'retinanet_evit_m4',
    'retinanet_evit_m4_digits',
    'semantic-fpn_evit_m4',
    'semantic-fpn_evit_m4_digits',
)


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_has_views_for_test_time_augmentation_the_first_as_in_its_test(name, tmp_path):
    cfg = Config.fromfile(f'configs/{name}.py')
    init_default_scope(cfg.default_scope)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    Image.fromarray(pixels[..., 0] % 10).save(tmp_path / 'segments.png')

    def load(pipeline):
        return Compose(pipeline)(
            dict(
                img=pixels,
                img_path=str(tmp_path / 'image.png'),
                img_id=1,
                instances=[],
                height=60,
                width=80,
                seg_map_path=str(tmp_path / 'segments.png'),
                reduce_zero_label=name == 'semantic-fpn_evit_m4',
                seg_fields=[],
            )
        )

    views = load(cfg.tta_pipeline)['inputs']
    assert len(views) == prod(map(len, cfg.tta_pipeline[-1].transforms)) > 1
    plain = load(cfg.test_dataloader.dataset.pipeline)['inputs']
    if name == 'semantic-fpn_evit_m4':
        # mmsegmentation's own scale factors of an image that its test makes larger.
        assert {view.shape[2] for view in views} == {40, 60, 80, 100, 120, 140}
    elif not name.endswith('digits') or name.startswith('evit'):
        assert views[0].equal(plain)
    flipped = [any(one.equal(two.flip(2)) for one in views) for two in views]
    assert all(flipped) if not name.endswith('digits') else not any(flipped)
