import json
import shutil

import pytest
from mmengine.config import Config

from mmevit.checks.data import check_data
from mmevit.utils.errors import ConfigError

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


def test_masks_that_are_not_polygons_are_refused(check):
    with pytest.raises(ConfigError, match=r'`\$.annotations\[0\].segmentation\[0\]`'):
        check(MASKS, flatten_masks)


@pytest.mark.parametrize('change', [remove_masks, resize_masks, flatten_masks])
def test_masks_are_not_checked_for_box_detectors(check, log, change):
    check(BOXES, change)
    assert not log.read_text()


@pytest.mark.parametrize('content', [dict(annotations=[]), dict(annotations=None), make_crowds])
def test_a_data_set_without_annotations_is_refused_unless_another_has_some(root, content):
    path = root / 'annotations/instances_train.json'
    complete = json.loads(path.read_text())
    (root / 'annotations/complete.json').write_text(json.dumps(complete))
    if callable(content):
        content(complete['annotations'])
    else:
        complete.update(content)
    path.write_text(json.dumps(complete))
    cfg = Config.fromfile(BOXES)
    part = cfg.train_dataloader.dataset
    part.data_root = str(root)
    with pytest.raises(ConfigError, match=r'has no annotations\. |cannot be trained on'):
        check_data(cfg, 'train')
    other = {**part, 'ann_file': 'annotations/complete.json'}
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, other])
    check_data(cfg, 'train')


def test_a_panoptic_file_is_not_read_as_one_of_boxes(root):
    cfg = Config.fromfile(BOXES)
    segments = [dict(id=1, category_id=1, bbox=[1, 1, 5, 5], area=9, iscrowd=0)]
    content = dict(
        images=[dict(id=1, file_name='000001.png', height=192, width=192)],
        categories=[dict(id=1, name='0', isthing=1)],
        annotations=[dict(image_id=1, file_name='1.png', segments_info=segments)],
    )
    (root / 'annotations/instances_train.json').write_text(json.dumps(content))
    cfg.train_dataloader.dataset.update(type='CocoPanopticDataset', data_root=str(root))
    check_data(cfg, 'train')


def test_only_missing_files_suggest_the_digits(check, root):
    with pytest.raises(ConfigError) as end:
        check(MASKS, remove_masks)
    assert 'prepare_digits' not in str(end.value)
    (root / 'train').unlink()
    with pytest.raises(ConfigError, match='is missing.*tools/prepare_digits.py'):
        check(BOXES, lambda annotations: None)


def test_annotations_that_are_all_crowds_are_refused(check):
    with pytest.raises(ConfigError, match='all iscrowd, left out or of other classes'):
        check(BOXES, make_crowds)
