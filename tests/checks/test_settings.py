"""Devices, mixed precision, schedule and pixels, and the order in which everything is checked."""

import pytest
import torch
from editing import CLASSIFIER, DETECTOR, MASK_DETECTOR, SEGMENTOR, expect_error, load

from mmevit.checks import check_config
from mmevit.checks.settings import (
    check_device,
    check_mixed_precision,
    check_pixels,
    check_schedule,
    warn_of_pixels,
)

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')


@pytest.fixture
def cfg():
    return load(DETECTOR)


def test_a_complete_config_passes(root):
    check_config(load(DETECTOR, root), ['train', 'val'])


def test_a_config_for_evaluation_only_needs_no_training_data(digits):
    cfg = load(CLASSIFIER)
    cfg.train_dataloader = None
    cfg.test_dataloader.dataset.data_root = str(digits / 'classification/val')
    check_config(cfg, ['test'])


def test_numbers_of_classes_are_compared_before_data_are_read():
    cfg = load(SEGMENTOR)
    cfg.model.decode_head.num_classes = 5
    with expect_error('model.decode_head.num_classes is 5'):
        check_config(cfg, ['train', 'val'])


def test_only_the_first_process_of_a_machine_reads_the_annotations(train_json, root, monkeypatch):
    train_json.write_text('corrupt')
    monkeypatch.setenv('LOCAL_RANK', '1')
    check_config(load(DETECTOR, root), ['train', 'val'])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with expect_error('instances_train.json'):
        check_config(load(DETECTOR, root), ['train', 'val'])


@no_gpu
def test_a_requested_gpu_that_is_missing_is_reported(cfg, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    with expect_error('CUDA_VISIBLE_DEVICES=0', 'PyTorch finds none'):
        check_config(cfg, ['train'])
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    check_device(cfg)


@no_gpu
def test_launchers_without_a_gpu_are_reported(cfg, monkeypatch):
    cfg.launcher = 'pytorch'
    with expect_error('--launcher pytorch', 'torchrun'):
        check_device(cfg)
    monkeypatch.setenv('RANK', '0')
    check_device(cfg)
    cfg.launcher = 'slurm'
    with expect_error('--launcher slurm', 'GPUs', 'tools/dist_train.sh'):
        check_device(cfg)


@no_gpu
@pytest.mark.parametrize('dtype', ['float16', torch.float16])
def test_float16_without_a_gpu_is_reported(cfg, dtype):
    cfg.optim_wrapper.merge(dict(type='AmpOptimWrapper', dtype=dtype))
    with expect_error('optim_wrapper.dtype is float16', 'no GPU', 'bfloat16'):
        check_config(cfg, ['train'])


def test_mixed_precision_is_not_checked_for_evaluation(root):
    cfg = load(DETECTOR, root)
    cfg.optim_wrapper.merge(dict(type='AmpOptimWrapper', dtype='float16'))
    check_config(cfg, ['val'])


@no_gpu
@pytest.mark.parametrize('dtype', [None, 'bfloat16', torch.bfloat16])
def test_bfloat16_needs_no_gpu(cfg, dtype):
    cfg.optim_wrapper.merge(dict(type='AmpOptimWrapper', dtype=dtype))
    check_mixed_precision(cfg)


@no_gpu
@pytest.mark.parametrize('kind', ['AmpOptimWrapper', 'Bfloat16OptimWrapper'])
def test_detectors_in_two_stages_are_not_trained_in_bfloat16_on_a_cpu(kind):
    cfg = load(MASK_DETECTOR)
    cfg.optim_wrapper.type = kind
    with expect_error('MaskRCNN has two stages', 'bfloat16'):
        check_mixed_precision(cfg)


@pytest.mark.parametrize('length', [0, -1, 1.5, 'few'])
def test_training_without_a_length_is_refused(cfg, length):
    cfg.train_cfg.max_epochs = length
    with expect_error(f'train_cfg.max_epochs is {length!r}', 'positive integer'):
        check_config(cfg, ['train'])


def test_a_schedule_that_begins_after_the_end_of_training_is_reported():
    cfg = load('configs/evit_m0_in1k.py')
    cfg.train_cfg.max_epochs = 5
    with expect_error('CosineAnnealingLR', 'begins after 5 epochs', 'param_scheduler=None'):
        check_schedule(cfg)
    cfg.train_cfg.max_epochs = 6
    check_schedule(cfg)


@pytest.mark.parametrize('in_channels', [1, 4])
def test_a_mean_and_a_std_are_needed_for_each_channel(cfg, in_channels, log):
    cfg.model.backbone.in_channels = in_channels
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='m4.pth')
    for num_values in (1, in_channels):
        cfg.model.data_preprocessor.update(mean=[127.5] * num_values, std=[64.0] * num_values)
        check_pixels(cfg)
        warn_of_pixels(cfg)
    assert not log.read_text()
    cfg.model.data_preprocessor.update(mean=[127.5] * 3, std=[64.0] * 3)
    with expect_error('mean has 3 values', f'in_channels is {in_channels}'):
        check_pixels(cfg)


def test_a_data_preprocessor_at_the_top_level_is_checked():
    cfg = load(CLASSIFIER)
    check_pixels(cfg)
    cfg.data_preprocessor.std = [1.0, 1.0]
    with expect_error('data_preprocessor.std has 2 values'):
        check_pixels(cfg)


def test_frozen_batch_norm_without_trained_weights_is_warned_of(cfg, log):
    warn_of_pixels(cfg)
    cfg.model.backbone.norm_eval = True
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='m4.pth')
    warn_of_pixels(cfg)
    assert not log.read_text()
    cfg.model.backbone.init_cfg = None
    warn_of_pixels(cfg)
    assert 'WARNING' in log.read_text() and 'norm_eval' in log.read_text()


def test_other_pixels_than_those_of_the_weights_are_warned_of(log):
    backbone = dict(type='EfficientViT', init_cfg=dict(checkpoint='evit://m4'))
    for index, name in enumerate(('yolox/yolox_s_8xb8', 'rtmdet/rtmdet_tiny_8xb32'), start=1):
        stock = load(f'mmdet::{name}-300e_coco.py')
        stock.model.backbone = backbone
        warn_of_pixels(stock)
        assert log.read_text().count('model.data_preprocessor has') == index
    for name in ('retinanet_evit_m4', 'semantic-fpn_evit_m4', 'evit_m5_pets'):
        warn_of_pixels(load(f'configs/{name}.py'))
    assert log.read_text().count('model.data_preprocessor has') == 2
