from pathlib import Path

import mmseg
import pytest
import torch
from making_models import build_model
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmevit.checks.models import check_model

NAMES = ['semantic-fpn_evit_m4', 'semantic-fpn_evit_m4_digits']


def load(name):
    return Config.fromfile(f'configs/{name}.py')


def test_every_segmentor_is_tested():
    assert {path.stem for path in Path('configs').glob('semantic*.py')} == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_segmentor_runs_in_loss_and_predict_mode(name):
    cfg = load(name)
    check_model(cfg.model)
    size = cfg.model.data_preprocessor.size = (128, 128)  # saves time
    model = build_model(cfg)
    num_classes = cfg.model.decode_head.num_classes
    packed = dict(inputs=[], data_samples=[])
    for _ in range(2):
        segments = PixelData(data=torch.randint(num_classes, (1, *size)))
        metainfo = dict(img_shape=size, ori_shape=(100, 130), pad_shape=size)
        packed['inputs'].append(torch.randint(256, (3, *size), dtype=torch.uint8))
        packed['data_samples'].append(SegDataSample(gt_sem_seg=segments, metainfo=metainfo))

    losses = model.train()(**model.data_preprocessor(packed, training=True), mode='loss')
    assert set(losses) == {'decode.loss_ce', 'decode.acc_seg'}
    losses['decode.loss_ce'].backward()
    assert model.backbone.stem[0].conv.weight.grad.abs().max() > 0

    data = model.eval().data_preprocessor(packed, training=False)
    with torch.no_grad():
        maps = model.extract_feat(data['inputs'])
        predictions = model(**data, mode='predict')
    strides = [size[0] / level.shape[-2] for level in maps]
    assert strides == [4, 8, 16, 32] == cfg.model.decode_head.feature_strides
    for prediction in predictions:
        assert prediction.pred_sem_seg.shape == (100, 130)
        assert prediction.seg_logits.data.shape[0] == num_classes


def test_ade20k_config_has_the_schedule_and_data_of_poolformer():
    cfg, usual = (
        load(NAMES[0]),
        Config.fromfile(
            Path(mmseg.__file__).parent
            / '.mim/configs/poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py'
        ),
    )
    assert cfg.train_cfg.max_iters == usual.train_cfg.max_iters == 40000
    assert cfg.auto_scale_lr.base_batch_size == 8 * usual.train_dataloader.batch_size == 32
    for key in ('lr', 'weight_decay'):
        assert cfg.optim_wrapper.optimizer[key] == usual.optim_wrapper.optimizer[key]
    (schedule,), (wanted,) = cfg.param_scheduler, usual.param_scheduler
    assert all(wanted.get(key, 0) == value for key, value in schedule.items())
    assert cfg.train_dataloader.dataset.type == 'ADE20KDataset'
    assert cfg.train_dataloader.dataset.pipeline == usual.train_pipeline
    init_cfg = dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.')
    assert cfg.model.backbone.init_cfg == init_cfg
    assert cfg.sync_bn == 'torch'  # SyncBN layers in the config would require a GPU
    assert 'SyncBN' not in str(cfg.model)


def test_bias_tables_are_not_decayed():
    cfg = load(NAMES[0])
    model = build_model(cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decays = {
        names[id(parameter)]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert all((decay == 0) == name.endswith('attention_biases') for name, decay in decays.items())
