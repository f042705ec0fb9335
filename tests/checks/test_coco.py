import json
import shutil

import pytest
from mmengine.config import Config

from mmevit.checks.data import check_data
from mmevit.errors import ConfigError

BOXES = 'configs/retinanet_evit_m4_digits.py'
MASKS = 'configs/mask-rcnn_evit_m4_digits.py'


@pytest.fixture
def root(digits, tmp_path):
    (tmp_path / 'train').symlink_to(digits / 'train')
    shutil.copytree(digits / 'annotations', tmp_path / 'annotations')
    return tmp_path


@pytest.fixture
def check(root):
    """Check the training data of a config after the annotations are changed."""

    def run(config, change):
        path = root / 'annotations/instances_train.json'
        content = json.loads(path.read_text())
        change(content['annotations'])
        path.write_text(json.dumps(content))
        cfg = Config.fromfile(config)
        cfg.train_dataloader.dataset.data_root = str(root)
        check_data(cfg, 'train')

    return run


def remove_masks(annotations):
    for annotation in annotations[:5]:
        del annotation['segmentation']


def make_crowds(annotations):
    for annotation in annotations:
        annotation['iscrowd'] = 1


def resize_masks(annotations):
    for annotation in annotations:
        annotation['segmentation'] = dict(size=[1, 2], counts='0')


def flatten_masks(annotations):
    for annotation in annotations:
        annotation['segmentation'] = annotation['bbox']


def test_a_mask_rcnn_without_segmentation_is_refused_with_file_and_count(check, root):
    with pytest.raises(ConfigError, match='instances_train.json .* 5 x annotation without segmen'):
        check(MASKS, remove_masks)


def test_masks_that_are_no_list_of_polygons_are_refused(check):
    with pytest.raises(ConfigError, match=r'`\$.annotations\[0\].segmentation\[0\]`'):
        check(MASKS, flatten_masks)


@pytest.mark.parametrize('change', [remove_masks, resize_masks, flatten_masks])
def test_a_box_detector_is_not_told_of_masks(check, log, change):
    check(BOXES, change)
    assert not log.read_text()


def test_annotations_that_are_all_crowds_are_refused(check):
    with pytest.raises(ConfigError, match='all iscrowd, left out or of no class'):
        check(BOXES, make_crowds)
