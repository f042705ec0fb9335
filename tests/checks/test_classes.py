import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from editing import DETECTOR, edit, expect_error, load
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from mmevit.checks import check_config
from mmevit.checks.classes import check_checkpoint_classes, check_classes
from mmevit.checks.data import check_data
from mmevit.checks.dataset_info import DatasetInfo
from mmevit.engine import StrictLoadHook, TrainingWeightsHook
from mmevit.utils.errors import CheckpointError

DIGITS = tuple('0123456789')
REVERSED = DIGITS[::-1]


@pytest.fixture
def cfg(root):
    return load(DETECTOR, root)


def reverse(path):
    edit(path, lambda content: content['categories'].reverse())


def renumber(content, offset):
    for category in content['categories']:
        category['id'] += offset
    for annotation in content['annotations']:
        annotation['category_id'] += offset


def set_classes(cfg, classes, *splits):
    for split in splits:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=classes)


def test_classes_in_the_same_order_pass_with_any_ids(cfg, val_json):
    edit(val_json, lambda content: renumber(content, 100))
    check_data(cfg, 'val')
    check_classes(cfg, ['train', 'val'])


def test_numbers_in_the_place_of_class_names_are_refused(cfg):
    set_classes(cfg, range(10), 'val')
    with expect_error('metainfo.classes of the val data has 0, but', 'are strings'):
        check_data(cfg, 'val')


def test_a_file_in_another_order_is_refused_even_if_the_config_follows_it(
    cfg, train_json, val_json
):
    reverse(val_json)
    with expect_error('10 x class in another order'):
        check_data(cfg, 'val')
    set_classes(cfg, REVERSED, 'val')
    check_data(cfg, 'val')
    with expect_error("Class 0 is '0' in the train data ", ", but '9' in the val data"):
        check_config(cfg, ['train', 'val'])
    reverse(train_json)
    set_classes(cfg, REVERSED, 'train')
    check_classes(cfg, ['train', 'val'])


def test_classes_of_an_unused_split_are_warned_of(cfg, log):
    check_classes(cfg, ['train', 'val'])
    check_classes(cfg, [])
    assert not log.read_text()
    set_classes(cfg, ('cat', 'dog'), 'test')
    check_classes(cfg, ['train', 'val'])
    assert "Class 0 is '0' in the train data" in log.read_text()


def test_every_data_set_of_a_concatenation_is_checked(cfg):
    one = cfg.train_dataloader.dataset
    other = {**one, 'ann_file': 'reversed.json', 'metainfo': dict(classes=REVERSED)}
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, other])
    with expect_error("'9' in the train data reversed.json"):
        check_classes(cfg, ['train'])


def test_classes_from_a_file_and_from_a_type_are_compared_too(cfg, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(REVERSED))
    set_classes(cfg, str(tmp_path / 'classes.txt'), 'val')
    with expect_error("but '9' in the val data"):
        check_classes(cfg, ['train', 'val'])
    del cfg.val_dataloader.dataset['metainfo']
    with expect_error("but 'person' in the val data"):
        check_classes(cfg, ['train', 'val'])
    # Its model is given the names as text.
    cfg.val_dataloader.dataset.return_classes = True
    check_classes(cfg, ['train', 'val'])


def test_a_data_set_that_inherits_from_coco_is_checked(cfg, train_json):
    reverse(train_json)
    cfg.train_dataloader.dataset.type = 'CityscapesDataset'
    with expect_error('another order than in the annotation file'):
        check_data(cfg, 'train')


@pytest.fixture
def metric_json(cfg, val_json):
    """A second annotation file of the validation images, which the metric reads."""
    path = val_json.with_name('other.json')
    shutil.copy(val_json, path)
    cfg.val_evaluator.ann_file = str(path)
    return path


def test_the_file_of_a_metric_needs_all_classes_in_order(cfg, metric_json):
    check_data(cfg, 'val')
    edit(metric_json, lambda content: content['categories'].pop())
    with expect_error("Class 9 is '9' in metainfo.classes, but missing in"):
        check_data(cfg, 'val')
    reverse(metric_json)
    with expect_error("Class 0 is '0' in metainfo.classes, but '8' in"):
        check_data(cfg, 'val')


def test_a_class_that_is_missing_in_the_validation_file_is_refused(cfg, val_json):
    """mmdet's metric would end in an IndexError once it is predicted."""
    edit(val_json, lambda content: content['categories'].pop())
    with expect_error("Class 9 is '9' in metainfo.classes, but missing in"):
        check_data(cfg, 'val')


def test_a_metric_with_a_file_of_other_images_is_refused(cfg, metric_json, train_json):
    edit(metric_json, lambda content: content['images'][2].update(file_name='other.png'))
    with expect_error('different images for 1 ids, such as 3'):
        check_data(cfg, 'val')
    cfg.val_evaluator.ann_file = str(train_json)
    with expect_error('different images for 8 ids'):
        check_data(cfg, 'val')


def test_a_metric_that_sorts_its_categories_is_compared_in_that_order(cfg, metric_json):
    def reverse_ids(content):
        for category in content['categories']:
            category['id'] = 11 - category['id']

    reverse(metric_json)
    cfg.val_evaluator.sort_categories = True
    check_data(cfg, 'val')
    edit(metric_json, reverse_ids)
    with expect_error("Class 0 is '0' in metainfo.classes, but '9' in"):
        check_data(cfg, 'val')


def evaluate_truth(truth, ann_file):
    """AP by mmdet's metric of boxes that are true, with labels in the order of the digits."""
    from mmdet.evaluation import CocoMetric

    content = json.loads(truth.read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    metric = CocoMetric(ann_file=str(ann_file))
    metric.dataset_meta = dict(classes=DIGITS)
    for image in content['images']:
        boxes = [each for each in content['annotations'] if each['image_id'] == image['id']]
        corners = torch.tensor([each['bbox'] for each in boxes], dtype=torch.float)
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([DIGITS.index(names[each['category_id']]) for each in boxes])
        found = dict(bboxes=corners, scores=torch.ones(len(boxes)), labels=labels)
        shape = (image['height'], image['width'])
        metric.process({}, [dict(pred_instances=found, img_id=image['id'], ori_shape=shape)])
    return metric.evaluate(len(content['images']))['coco/bbox_mAP']


def test_files_with_other_ids_or_orders_are_scored_right_or_refused(cfg, metric_json, val_json):
    edit(metric_json, lambda content: renumber(content, 100))
    check_data(cfg, 'val')
    assert evaluate_truth(val_json, metric_json) == 1
    reverse(metric_json)
    assert evaluate_truth(val_json, metric_json) < 0.5
    with expect_error("Class 0 is '0' in metainfo.classes, but '9' in"):
        check_data(cfg, 'val')


@pytest.fixture
def folders(tmp_path):
    for name in ('train/cat', 'train/cow', 'train/dog', 'val/cow', 'val/dog'):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / '1.png').touch()
    return tmp_path


def folder_cfg(root, **options):
    return Config(
        dict(default_scope='mmpretrain')
        | {
            f'{split}_dataloader': dict(
                dataset=dict(type='CustomDataset', data_root=str(root), data_prefix=split) | options
            )
            for split in ('train', 'val')
        }
    )


def test_class_folders_in_one_split_only_are_refused(folders):
    with expect_error("Class 0 is 'cat' in the train data, but 'cow' in"):
        check_classes(folder_cfg(folders), ['train', 'val'])
    with expect_error('class folders cow, dog, ', ' is cat, cow, dog'):
        check_classes(folder_cfg(folders, classes=['cat', 'cow', 'dog']), ['train', 'val'])
    (folders / 'val/ant').mkdir()
    (folders / 'val/ant/1.png').touch()
    cfg = folder_cfg(folders, metainfo=dict(classes=('a', 'b', 'c')))
    with expect_error("Class 0 is 'cat' ", " but 'ant' in ", 'class folders'):
        check_classes(cfg, ['train', 'val'])


def test_class_folders_of_an_unused_split_are_warned_of(folders, log):
    (folders / 'val/cat').mkdir()
    cfg = folder_cfg(folders, classes=['cat', 'cow', 'dog'])
    test = {**cfg.val_dataloader.dataset, 'data_prefix': 'test'}
    for name in ('cat', 'dog'):
        (folders / 'test' / name).mkdir(parents=True)
    cfg.test_dataloader = dict(dataset=test)
    check_classes(cfg, ['train', 'val'])
    assert 'The test data has the class folders cat, dog' in log.read_text()
    with expect_error('class folders cat, dog'):
        check_classes(cfg, ['test'])


def test_classes_of_lists_in_openmmlabs_layout_are_compared(tmp_path):
    categories = [dict(id=1, category_name='dog'), dict(id=0, category_name='cat')]
    metas = dict(
        train=dict(classes=['cat', 'dog']),
        val=dict(categories=categories),
        test=dict(classes=['dog', 'cat']),
    )
    cfg = Config(dict(default_scope='mmpretrain'))
    for split, meta in metas.items():
        content = dict(metainfo=meta, data_list=[dict(img_path='a.png', gt_label=1)])
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
        dataset = dict(type='BaseDataset', data_root=str(tmp_path), ann_file=f'{split}.json')
        cfg[f'{split}_dataloader'] = dict(dataset=dataset)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            built = DATASETS.build(dataset).metainfo['classes']
            assert list(DatasetInfo(dataset).classes) == list(built)
    check_classes(cfg, ['train', 'val'])
    with expect_error("Class 0 is 'cat' in the train data ", ", but 'dog' in"):
        check_classes(cfg, ['train', 'val', 'test'])


def test_the_classes_of_a_tracker_may_be_some_of_the_data(cfg):
    cfg.model = dict(type='ByteTrack', detector=cfg.model, tracker=dict(type='ByteTracker'))
    set_classes(cfg, ('pedestrian',), 'val')
    check_classes(cfg, ['train', 'val'])


def test_the_same_class_folders_pass_and_mmpretrain_numbers_them_alike(folders):
    (folders / 'val/cat').mkdir()
    cfg = folder_cfg(folders)
    check_classes(cfg, ['train', 'val'])
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train, val = (
            DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val')
        )
    assert train.metainfo['classes'] == val.metainfo['classes'] == ('cat', 'cow', 'dog')
    assert [val.get_gt_labels().tolist(), train.get_gt_labels().tolist()] == [[1, 2], [0, 1, 2]]


def test_classes_in_another_order_than_their_folders_are_refused(folders):
    cfg = folder_cfg(folders, classes=['dog', 'cow', 'cat'])
    with expect_error('class folders cat, cow, dog, ', ' is dog, cow, cat'):
        check_classes(cfg, ['train'])


@pytest.mark.parametrize(
    'meta', [dict(dataset_meta=dict(classes=DIGITS)), dict(CLASSES=list(DIGITS))], ids=str
)
def test_the_classes_of_a_checkpoint_are_compared_with_the_data(meta):
    def data(*metas):
        return SimpleNamespace(metainfo=list(metas) if len(metas) > 1 else metas[0])

    checkpoint = dict(meta=meta)
    check_checkpoint_classes(checkpoint, data(dict(classes=DIGITS)))
    check_checkpoint_classes(checkpoint, data({}))
    check_checkpoint_classes({}, data(dict(classes=REVERSED)))
    with pytest.raises(CheckpointError, match="Class 0 is '0' in the checkpoint, but '9' in the"):
        check_checkpoint_classes(checkpoint, data(dict(classes=REVERSED)))
    with pytest.raises(CheckpointError, match='but missing in the data'):
        check_checkpoint_classes(checkpoint, data(dict(classes=DIGITS), dict(classes=DIGITS[:9])))
    # Other names of as many classes are no other order.
    words = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    check_checkpoint_classes(checkpoint, data(dict(classes=words)))
    check_checkpoint_classes(dict(meta=dict(CLASSES='cat')), data(dict(classes=('cat',))))


@pytest.mark.parametrize(
    ('hook', 'is_resumed', 'is_refused'),
    [
        (StrictLoadHook(), False, True),
        (TrainingWeightsHook(), True, True),
        # In fine-tuning the classes may be others.
        (TrainingWeightsHook(), False, False),
    ],
)
def test_evaluation_and_resuming_with_other_classes_are_refused(hook, is_resumed, is_refused):
    model = torch.nn.Linear(1, 1)
    dataloader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=REVERSED)))
    runner = SimpleNamespace(
        model=model,
        _resume=is_resumed,
        _test_loop=None,
        train_dataloader=dataloader,
        test_dataloader=dataloader,
    )
    meta = dict(dataset_meta=dict(classes=DIGITS))
    checkpoint = dict(meta=meta, state_dict=model.state_dict())
    with pytest.raises(CheckpointError) if is_refused else contextlib.nullcontext():
        hook.after_load_checkpoint(runner, checkpoint)
