import json
import shutil

import pytest
import torch
from mmengine.config import Config

from mmevit.checks import check_config
from mmevit.checks.devices import check_device
from mmevit.utils.errors import ConfigError

DIGITS_CONFIG = 'configs/retinanet_evit_m4_digits.py'


@pytest.fixture
def cfg(digits):
    return make_cfg(digits)


def make_cfg(root):
    cfg = Config.fromfile(DIGITS_CONFIG)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
    cfg.val_evaluator.ann_file = f'{root}/annotations/instances_val.json'
    return cfg


@pytest.fixture
def copy(digits, tmp_path):
    root = tmp_path / 'digits'
    shutil.copytree(digits, root, ignore=shutil.ignore_patterns('classification'))
    return root


def expect_sentence(cfg, *parts):
    with pytest.raises(ConfigError) as caught:
        check_config(cfg, splits=['train', 'val'])
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert str(part) in message
    return message


def test_a_complete_config_passes(cfg):
    check_config(cfg, splits=['train', 'val'])


def test_missing_coco_is_reported_with_the_expected_files_and_the_digits():
    cfg = Config.fromfile('configs/retinanet_evit_m4.py')
    cfg.train_dataloader.dataset.data_root = 'no/such/coco/'
    expect_sentence(
        cfg,
        'no/such/coco/annotations/instances_train2017.json is missing',
        'no/such/coco/train2017',
        'configs/retinanet_evit_m4_digits.py',
        'tools/prepare_digits.py',
    )


def test_a_truncated_annotation_file_is_reported(copy):
    path = copy / 'annotations/instances_val.json'
    path.write_bytes(path.read_bytes()[:-100])
    expect_sentence(make_cfg(copy), path, 'not valid JSON', 'val')


@pytest.mark.parametrize(
    'content',
    [
        '[]',
        '3',
        '{"images": []}',
        '{"images": null, "annotations": [], "categories": []}',
        '{"images": [], "annotations": [], "categories": []}',
    ],
)
def test_json_that_is_not_coco_is_reported(copy, content):
    path = copy / 'annotations/instances_train.json'
    path.write_text(content)
    message = expect_sentence(make_cfg(copy), path)
    assert 'not a valid COCO annotation file' in message or 'has no images' in message


@pytest.mark.parametrize(
    ('part', 'entry'),
    [('images', dict(id=1)), ('annotations', dict(id=1)), ('annotations', 7), ('categories', {})],
)
def test_an_entry_without_required_fields_is_reported(copy, part, entry):
    path = copy / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content[part][3] = entry
    path.write_text(json.dumps(content))
    expect_sentence(make_cfg(copy), path, 'not a valid COCO annotation file', f'`$.{part}[3]`')


def test_a_test_set_needs_no_annotations(copy):
    path = copy / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    del content['annotations']
    path.write_text(json.dumps(content))
    cfg = make_cfg(copy)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    check_config(cfg, splits=['test'])
    expect_sentence(cfg, path, 'has no annotations')


def test_classes_that_are_missing_in_the_annotations_are_reported(cfg):
    for dataloader in (cfg.train_dataloader, cfg.val_dataloader):
        dataloader.dataset.metainfo = dict(classes=('cat', 'dog'))
    expect_sentence(cfg, 'model.bbox_head.num_classes is 10, but the train data has 2 classes')
    cfg.model.bbox_head.num_classes = 2
    expect_sentence(cfg, '0, 1, 2, 3 and 6 more', 'cat, dog', 'metainfo.classes')
    for dataloader in (cfg.train_dataloader, cfg.val_dataloader):
        del dataloader.dataset['metainfo']
    cfg.model.bbox_head.num_classes = 80
    expect_sentence(cfg, 'person, bicycle')


def test_a_missing_image_is_reported(copy):
    for name in ('000002.png', '000005.png'):
        (copy / 'train' / name).unlink()
    path = copy / 'train/000002.png'
    expect_sentence(make_cfg(copy), '2 of 16 images', path, copy / 'annotations')


def test_a_missing_image_folder_is_reported(copy):
    shutil.rmtree(copy / 'val')
    expect_sentence(make_cfg(copy), copy / 'val', 'is missing')


def test_wrapped_and_concatenated_data_sets_are_checked(cfg, copy):
    complete = cfg.train_dataloader.dataset
    corrupt = make_cfg(copy).train_dataloader.dataset
    (copy / 'annotations/instances_train.json').unlink()
    joined = dict(type='ConcatDataset', datasets=[complete, corrupt])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    expect_sentence(cfg, copy / 'annotations/instances_train.json')


def test_classes_may_be_in_a_file_and_a_string_is_not_a_class(cfg, tmp_path):
    cfg.train_dataloader.dataset.metainfo = dict(classes=str(tmp_path / 'classes.txt'))
    expect_sentence(cfg, 'classes.txt', 'this file does not exist')
    check_config(cfg, splits=['val'])
    (tmp_path / 'classes.txt').write_text('\n'.join('0123456789'))
    check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cat'))
    expect_sentence(cfg, "is 'cat', but this file does not exist", "('cat',) for a single class")


def test_a_category_that_mmdet_would_confuse_with_another_class_is_reported(copy):
    path = copy / 'annotations/instances_train.json'
    path.write_text(path.read_text().replace('"name": "3"', '"name": "dog"'))
    cfg = make_cfg(copy)
    cfg.train_dataloader.dataset.metainfo = dict(palette=[(0, 0, 0)])
    cfg.val_dataloader.dataset.metainfo = cfg.train_dataloader.dataset.metainfo
    cfg.model.bbox_head.num_classes = 80
    expect_sentence(cfg, 'dog in the place of person')


def test_boxes_that_mmdet_leaves_out_are_counted_in_a_warning(cfg, copy, log):
    path = copy / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][2] = 0
    content['annotations'][1]['bbox'][0] = float('nan')
    path.write_text(json.dumps(content))
    check_config(make_cfg(copy), splits=['train'])
    warning = log.read_text()
    assert '1 x box or area of less than one pixel (annotation 1)' in warning
    assert '1 x box with NaN (annotation 2)' in warning and 'tools/check_dataset.py' in warning


@pytest.mark.parametrize('part', ['images', 'annotations'])
def test_duplicate_ids_are_reported(copy, part):
    path = copy / 'annotations/instances_train.json'
    content = json.loads(path.read_text())
    content[part][1]['id'] = content[part][0]['id']
    path.write_text(json.dumps(content))
    expect_sentence(make_cfg(copy), path, '1 x', 'duplicate', 'tools/check_dataset.py')


@pytest.mark.parametrize('length', [0, -1, 1.5, 'few'])
def test_training_without_a_length_is_refused(cfg, length):
    cfg.train_cfg.max_epochs = length
    expect_sentence(cfg, f'train_cfg.max_epochs is {length!r}', 'positive integer')


@pytest.mark.parametrize('name', ['XMLDataset', 'CrowdHumanDataset', 'MyDataset'])
def test_annotations_of_other_data_sets_are_not_read_as_coco(copy, name):
    (copy / 'annotations/instances_train.json').write_text(json.dumps(dict(data_list=[])))
    cfg = make_cfg(copy)
    cfg.train_dataloader.dataset.type = name
    check_config(cfg, splits=['train'])


def test_a_missing_annotation_file_of_an_evaluator_is_reported(cfg):
    cfg.val_evaluator.ann_file = 'no/such/val.json'
    expect_sentence(cfg, 'val_evaluator.ann_file', 'no/such/val.json')
    cfg.val_evaluator = [dict(type='Accuracy'), cfg.val_evaluator]
    expect_sentence(cfg, 'no/such/val.json')


def classifier_cfg(**dataset):
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='ImageClassifier', backbone=dict(type='EfficientViT', arch='m0')),
            train_dataloader=dict(dataset=dataset),
        )
    )


def test_a_missing_root_folder_is_reported_with_the_digits_classifier(tmp_path):
    cfg = classifier_cfg(type='ImageNet', data_root='no/such/imagenet', split='train')
    expect_sentence(cfg, 'no/such/imagenet/train is missing', 'configs/evit_m0_digits.py')
    (tmp_path / 'train').mkdir()
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    check_config(cfg, splits=['train'])
    cfg.train_dataloader.dataset.pop('split')  # the classes are in the root folder itself
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'train')
    check_config(cfg, splits=['train'])


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
        expect_sentence(cfg, f'{tmp_path / path} is missing', *paths)
        (tmp_path / path).mkdir(parents=True)
    check_config(cfg, splits=['train'])
    if kind == 'StanfordCars':
        shutil.rmtree(tmp_path / paths[0])
        (tmp_path / 'cars_annos.mat').touch()
        expect_sentence(cfg, f'{tmp_path / "car_ims"} is missing')


def test_downloaded_and_remote_data_are_not_checked():
    check_config(classifier_cfg(type='CIFAR10', data_root='no/such'), splits=['train'])
    check_config(classifier_cfg(type='ImageNet', data_root='s3://bucket'), splits=['train'])
    expect_sentence(classifier_cfg(type='CIFAR10', data_root='no/such', download=False), 'no/such')


def test_a_local_backend_is_not_remote(cfg):
    cfg.train_dataloader.dataset.update(data_root='no/such', backend_args=dict(backend='local'))
    expect_sentence(cfg, 'no/such/annotations/instances_train.json is missing')
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    check_config(cfg, splits=['train'])


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')


@no_gpu
def test_a_requested_gpu_that_is_missing_is_reported(cfg, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    expect_sentence(cfg, 'CUDA_VISIBLE_DEVICES=0', 'PyTorch finds none')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    check_device(cfg)


def test_a_config_for_evaluation_only_needs_no_training_data(digits):
    cfg = Config.fromfile('configs/evit_m0_digits.py')
    cfg.train_dataloader = None
    cfg.test_dataloader.dataset.data_root = str(digits / 'classification/val')
    check_config(cfg, splits=['test'])


def test_a_schedule_that_begins_after_the_end_of_training_is_reported():
    cfg = Config.fromfile('configs/evit_m0_in1k.py')
    cfg.train_cfg.max_epochs = 5
    expect_sentence(cfg, 'CosineAnnealingLR', 'begins after 5 epochs', 'param_scheduler=None')
    cfg.train_cfg.max_epochs = 6
    expect_sentence(cfg, 'data/imagenet/train is missing')


@no_gpu
@pytest.mark.parametrize('dtype', ['float16', torch.float16])
def test_float16_without_a_gpu_is_reported(cfg, dtype):
    cfg.optim_wrapper.merge(dict(type='AmpOptimWrapper', dtype=dtype))
    expect_sentence(cfg, 'optim_wrapper.dtype is float16', 'no GPU', 'bfloat16')
    check_config(cfg, splits=['val'])


@no_gpu
@pytest.mark.parametrize('dtype', [None, 'bfloat16', torch.bfloat16])
def test_bfloat16_needs_no_gpu(cfg, dtype):
    cfg.optim_wrapper.merge(dict(type='AmpOptimWrapper', dtype=dtype))
    check_config(cfg, splits=['train'])


@no_gpu
@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'Bfloat16OptimWrapper'])
def test_detectors_in_two_stages_are_not_trained_in_bfloat16_on_a_cpu(kind):
    cfg = Config.fromfile('configs/mask-rcnn_evit_m4_digits.py')
    cfg.optim_wrapper.type = kind
    expect_sentence(cfg, 'MaskRCNN has two stages', 'bfloat16')


@no_gpu
def test_launchers_without_a_gpu_are_reported(cfg, monkeypatch):
    cfg.launcher = 'pytorch'
    expect_sentence(cfg, '--launcher pytorch', 'torchrun')
    monkeypatch.setenv('RANK', '0')
    check_device(cfg)
    cfg.launcher = 'slurm'
    expect_sentence(cfg, '--launcher slurm', 'GPUs', 'tools/dist_train.sh')


def test_only_the_first_process_of_a_machine_reads_the_annotations(cfg, copy, monkeypatch):
    (copy / 'annotations/instances_train.json').write_text('corrupt')
    monkeypatch.setenv('LOCAL_RANK', '1')
    check_config(make_cfg(copy), splits=['train'])
    monkeypatch.setenv('LOCAL_RANK', '0')
    expect_sentence(make_cfg(copy), 'instances_train.json')
