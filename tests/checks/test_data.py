"""Annotation files, images and evaluators of a config are checked."""

import json
import shutil
from importlib.util import find_spec

import pytest
from editing import CLASSIFIER, DETECTOR, MASK_DETECTOR, edit, expect_error, load
from mmengine.config import Config

from mmevit.checks.class_counts import check_number_of_classes
from mmevit.checks.data import check_data


@pytest.fixture
def cfg(root):
    return load(DETECTOR, root)


def test_missing_coco_is_reported_with_the_expected_files_and_the_digits():
    cfg = load('configs/retinanet_evit_m4.py')
    cfg.train_dataloader.dataset.data_root = 'no/such/coco/'
    with expect_error(
        'no/such/coco/annotations/instances_train2017.json is missing',
        'no/such/coco/train2017',
        DETECTOR,
        'tools/prepare_digits.py',
    ):
        check_data(cfg, 'train')


@pytest.mark.parametrize('name', ['rtmdet_evit_m1_bccd', 'evit_m0_imagenette'])
def test_missing_photographs_are_reported_with_their_source(name, monkeypatch, tmp_path):
    cfg = load(f'configs/{name}.py')
    monkeypatch.chdir(tmp_path)
    with expect_error('is missing', f'Download the data from {cfg.data_source}.'):
        check_data(cfg, 'train')


def test_a_truncated_annotation_file_is_reported(cfg, val_json):
    val_json.write_bytes(val_json.read_bytes()[:-100])
    check_data(cfg, 'train')
    with expect_error(val_json, 'not valid JSON'):
        check_data(cfg, 'val')


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('[]', 'not a valid COCO annotation file'),
        ('3', 'not a valid COCO annotation file'),
        ('{"images": []}', 'not a valid COCO annotation file'),
        ('{"images": null, "annotations": [], "categories": []}', 'not a valid COCO annotation'),
        ('{"images": [], "annotations": [], "categories": []}', 'has no images'),
    ],
)
def test_json_that_is_not_coco_is_reported(cfg, train_json, content, reason):
    train_json.write_text(content)
    with expect_error(train_json, reason):
        check_data(cfg, 'train')


@pytest.mark.parametrize(
    ('part', 'entry'),
    [('images', dict(id=1)), ('annotations', dict(id=1)), ('annotations', 7), ('categories', {})],
)
def test_an_entry_without_required_fields_is_reported(cfg, train_json, part, entry):
    edit(train_json, lambda content: content[part].__setitem__(3, entry))
    with expect_error(train_json, 'not a valid COCO annotation file', f'`$.{part}[3]`'):
        check_data(cfg, 'train')


def test_a_test_set_needs_no_annotations(cfg, val_json):
    edit(val_json, lambda content: content.pop('annotations'))
    check_data(cfg, 'test')
    with expect_error(val_json, 'has no annotations'):
        check_data(cfg, 'val')


@pytest.mark.parametrize(
    ('classes', 'names'), [(('cat', 'dog'), 'cat, dog'), (None, 'person, bicycle')]
)
def test_classes_that_are_missing_in_the_annotations_are_reported(cfg, classes, names):
    cfg.train_dataloader.dataset.metainfo = dict(classes=classes)
    with expect_error('0, 1, 2, 3 and 6 more', names, 'metainfo.classes'):
        check_data(cfg, 'train')


def test_missing_images_and_folders_are_reported(cfg, root):
    for name in ('000002.png', '000005.png'):
        (root / 'train' / name).unlink()
    with expect_error('2 of 16 images', root / 'train/000002.png', root / 'annotations'):
        check_data(cfg, 'train')
    shutil.rmtree(root / 'val')
    with expect_error(root / 'val', 'is missing', 'tools/prepare_digits.py'):
        check_data(cfg, 'val')


def test_wrapped_and_concatenated_data_sets_are_checked(cfg, root):
    complete = cfg.train_dataloader.dataset
    missing = {**complete, 'ann_file': 'missing.json'}
    joined = dict(type='ConcatDataset', datasets=[complete, missing])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    with expect_error(root / 'missing.json'):
        check_data(cfg, 'train')


def test_classes_may_be_in_a_file_and_a_string_is_not_a_class(cfg, tmp_path):
    cfg.train_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    with expect_error('classes.txt', 'this file does not exist'):
        check_data(cfg, 'train')
    (tmp_path / 'classes.txt').write_text('\n'.join('0123456789'))
    check_data(cfg, 'train')
    check_number_of_classes(cfg, ['train'])
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat'))
    with expect_error("is 'cat', but this file does not exist", "('cat',) for a single class"):
        check_data(cfg, 'train')


def test_a_category_that_mmdet_would_confuse_with_another_class_is_reported(cfg, train_json):
    train_json.write_text(train_json.read_text().replace('"name": "3"', '"name": "dog"'))
    cfg.train_dataloader.dataset.metainfo = dict(palette=[(0, 0, 0)])
    with expect_error('dog in the place of person'):
        check_data(cfg, 'train')


def test_boxes_that_mmdet_leaves_out_are_counted_in_a_warning(cfg, train_json, log):
    def change(content):
        content['annotations'][0]['bbox'][2] = 0
        content['annotations'][1]['bbox'][0] = float('nan')

    edit(train_json, change)
    check_data(cfg, 'train')
    warning = log.read_text()
    assert '1 x box or area of less than one pixel (annotation 1)' in warning
    assert '1 x box with NaN (annotation 2)' in warning and 'tools/check_dataset.py' in warning


@pytest.mark.parametrize('part', ['images', 'annotations'])
def test_duplicate_ids_are_reported(cfg, train_json, part):
    edit(train_json, lambda content: content[part][1].update(id=content[part][0]['id']))
    with expect_error(train_json, '1 x', 'duplicate', 'tools/check_dataset.py'):
        check_data(cfg, 'train')


@pytest.mark.parametrize('name', ['XMLDataset', 'CrowdHumanDataset', 'MyDataset'])
def test_annotations_of_other_data_sets_are_not_read_as_coco(cfg, train_json, name):
    train_json.write_text(json.dumps(dict(data_list=[])))
    cfg.train_dataloader.dataset.type = name
    check_data(cfg, 'train')


def test_a_panoptic_file_is_not_read_as_one_of_boxes(cfg, train_json):
    segments = [dict(id=1, category_id=1, bbox=[1, 1, 5, 5], area=9, iscrowd=0)]
    content = dict(
        images=[dict(id=1, file_name='000001.png', height=192, width=192)],
        categories=[dict(id=1, name='0', isthing=1)],
        annotations=[dict(image_id=1, file_name='1.png', segments_info=segments)],
    )
    train_json.write_text(json.dumps(content))
    cfg.train_dataloader.dataset.type = 'CocoPanopticDataset'
    check_data(cfg, 'train')


def remove_masks(content):
    for annotation in content['annotations'][:5]:
        del annotation['segmentation']


def make_crowds(content):
    for annotation in content['annotations']:
        annotation['iscrowd'] = 1


def resize_masks(content):
    for annotation in content['annotations']:
        annotation['segmentation'] = dict(size=[1, 2], counts='0')


def flatten_masks(content):
    for annotation in content['annotations']:
        annotation['segmentation'] = annotation['bbox']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (remove_masks, ' 5 x annotation without segmen'),
        (resize_masks, ' x mask of another size'),
        (flatten_masks, '`$.annotations[0].segmentation[0]`'),
    ],
)
def test_masks_are_checked_only_for_detectors_that_load_them(
    cfg, root, train_json, log, change, message
):
    edit(train_json, change)
    check_data(cfg, 'train')
    assert not log.read_text()
    with expect_error(train_json, message) as caught:
        check_data(load(MASK_DETECTOR, root), 'train')
    # That is for missing files.
    assert 'prepare_digits' not in str(caught.value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: content.update(annotations=[]), 'has no annotations. '),
        (lambda content: content.update(annotations=None), 'has no annotations. '),
        (make_crowds, 'all iscrowd, left out or of other classes'),
    ],
)
def test_data_without_annotations_are_refused_unless_others_have_some(
    cfg, train_json, change, message
):
    shutil.copy(train_json, train_json.with_name('complete.json'))
    edit(train_json, change)
    with expect_error(message):
        check_data(cfg, 'train')
    part = cfg.train_dataloader.dataset
    other = {**part, 'ann_file': 'annotations/complete.json'}
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, other])
    check_data(cfg, 'train')


@pytest.mark.skipif(find_spec('faster_coco_eval') is not None, reason='it is installed')
def test_a_faster_coco_metric_without_its_library_is_reported(cfg):
    cfg.val_evaluator.type = 'FasterCocoMetric'
    with expect_error('val_evaluator is a FasterCocoMetric', 'faster_coco_eval is not installed'):
        check_data(cfg, 'val')


def test_a_missing_annotation_file_of_an_evaluator_is_reported(cfg):
    cfg.val_evaluator.ann_file = 'no/such/val.json'
    for evaluator in (cfg.val_evaluator, [dict(type='Accuracy'), cfg.val_evaluator]):
        cfg.val_evaluator = evaluator
        with expect_error('val_evaluator.ann_file', 'no/such/val.json'):
            check_data(cfg, 'val')


def classifier_cfg(**dataset):
    return Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))


def test_a_missing_root_folder_is_reported_with_the_digits_classifier(tmp_path):
    cfg = classifier_cfg(type='ImageNet', data_root='no/such/imagenet', split='train')
    with expect_error('no/such/imagenet/train is missing', CLASSIFIER):
        check_data(cfg, 'train')
    (tmp_path / 'train').mkdir()
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    check_data(cfg, 'train')
    cfg.train_dataloader.dataset.pop('split')  # the classes are in the root folder itself
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'train')
    check_data(cfg, 'train')


@pytest.mark.parametrize(
    ('kind', 'split', 'paths'),
    [
        ('StanfordCars', 'train', ['cars_train', 'devkit/cars_train_annos.mat']),
        ('StanfordCars', 'test', ['cars_test', 'devkit/cars_test_annos_withlabels.mat']),
        ('Flowers102', 'trainval', ['jpg', 'imagelabels.mat', 'setid.mat']),
        ('OxfordIIITPet', 'trainval', ['images', 'annotations/trainval.txt']),
    ],
)
def test_missing_files_of_a_fixed_layout_are_reported(tmp_path, kind, split, paths):
    cfg = classifier_cfg(type=kind, data_root=str(tmp_path), split=split)
    for path in paths:
        with expect_error(f'{tmp_path / path} is missing', *paths):
            check_data(cfg, 'train')
        (tmp_path / path).mkdir(parents=True)
    check_data(cfg, 'train')
    if kind == 'StanfordCars':
        shutil.rmtree(tmp_path / paths[0])
        (tmp_path / 'cars_annos.mat').touch()
        with expect_error(f'{tmp_path / "car_ims"} is missing'):
            check_data(cfg, 'train')


def test_downloaded_and_remote_data_are_not_checked():
    check_data(classifier_cfg(type='CIFAR10', data_root='no/such'), 'train')
    check_data(classifier_cfg(type='ImageNet', data_root='s3://bucket'), 'train')
    with expect_error('no/such'):
        check_data(classifier_cfg(type='CIFAR10', data_root='no/such', download=False), 'train')


def test_a_local_backend_is_not_remote(cfg):
    cfg.train_dataloader.dataset.update(data_root='no/such', backend_args=dict(backend='local'))
    with expect_error('no/such/annotations/instances_train.json is missing'):
        check_data(cfg, 'train')
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    check_data(cfg, 'train')
