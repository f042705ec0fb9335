import json
import shutil

import pytest
import torch
from mmengine.config import Config

from mmevit.engine import ConfigError, check_config
from mmevit.engine.checks import check_device, check_model

DIGITS_CONFIG = 'configs/retinanet_evit_m4_digits.py'


@pytest.fixture
def cfg(digits):
    return make_cfg(digits)


def make_cfg(root):
    cfg = Config.fromfile(DIGITS_CONFIG)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
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


def test_a_whole_config_passes(cfg):
    check_config(cfg, splits=['train', 'val'])


def test_missing_coco_names_what_is_expected_and_the_digits():
    cfg = Config.fromfile('configs/retinanet_evit_m4.py')
    cfg.train_dataloader.dataset.data_root = 'no/such/coco/'
    expect_sentence(
        cfg,
        'no/such/coco/annotations/instances_train2017.json is missing',
        'no/such/coco/train2017',
        'configs/retinanet_evit_m4_digits.py',
        'tools/prepare_digits.py',
    )


def test_a_torn_annotation_file_is_named(copy):
    path = copy / 'annotations/instances_val.json'
    path.write_bytes(path.read_bytes()[:-100])
    expect_sentence(make_cfg(copy), path, 'not a whole JSON file', 'val')


@pytest.mark.parametrize('content', ['[]', '{"images": []}', '3'])
def test_json_that_is_not_coco_is_told_what_is_expected(copy, content):
    path = copy / 'annotations/instances_train.json'
    path.write_text(content)
    expect_sentence(make_cfg(copy), path, 'annotations', 'images, annotations, categories')


def test_a_named_image_that_is_missing_is_named(copy):
    for name in ('000002.png', '000005.png'):
        (copy / 'train' / name).unlink()
    path = copy / 'train/000002.png'
    expect_sentence(make_cfg(copy), '2 of 16 images', path, copy / 'annotations')


def test_a_missing_image_folder_is_named(copy):
    shutil.rmtree(copy / 'val')
    expect_sentence(make_cfg(copy), copy / 'val', 'is missing')


def test_wrapped_and_joined_data_sets_are_looked_into(cfg, copy):
    whole = cfg.train_dataloader.dataset
    torn = make_cfg(copy).train_dataloader.dataset
    (copy / 'annotations/instances_train.json').unlink()
    joined = dict(type='ConcatDataset', datasets=[whole, torn])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    expect_sentence(cfg, copy / 'annotations/instances_train.json')


def test_data_in_mmengines_own_format_is_left_alone(copy):
    path = copy / 'annotations/instances_train.json'
    path.write_text(json.dumps(dict(metainfo={}, data_list=[])))
    check_config(make_cfg(copy), splits=['train'])


@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        ({'backbone.arch': 'm9'}, ["'m9'", 'm0, m1, m2, m3, m4, m5']),
        ({'backbone.window_sizes': (7, 0, 7)}, ['(7, 0, 7)', 'none below 1']),
        ({'backbone.windows': 7}, ['windows']),
        ({'neck.in_channels': [128, 256]}, ['[128, 256]', '[128, 256, 384]']),
        ({'backbone.arch': 'm0'}, ['[128, 256, 384]', '[64, 128, 192]', "'m0'"]),
        ({'backbone.out_indices': (1, 2)}, ['[128, 256, 384]', '[256, 384]']),
    ],
    ids=lambda value: str(value)[:40],
)
def test_backbone_and_neck_that_do_not_fit_are_named_before_they_are_built(cfg, options, parts):
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    expect_sentence(cfg, *parts)


def test_other_backbones_are_left_alone():
    check_model(dict(type='RetinaNet', backbone=dict(type='ResNet', depth=1)))


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')


@no_gpu
def test_a_gpu_that_is_asked_for_and_absent_is_named(cfg, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    expect_sentence(cfg, 'CUDA_VISIBLE_DEVICES=0', 'PyTorch sees none')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    check_device(cfg)


@no_gpu
def test_launchers_and_mixed_precision_without_a_gpu_are_named(cfg):
    cfg.launcher = 'pytorch'
    expect_sentence(cfg, '--launcher pytorch', 'gloo')
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    check_device(cfg)
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    expect_sentence(cfg, '--amp')
