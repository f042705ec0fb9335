"""Batches of one image are refused where batch norm cannot train on them, and only there."""

import re

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmevit.checks.batches import check_batch_sizes, find_single_images
from mmevit.utils.errors import ConfigError

MESSAGE = 'but batch norm needs two'


@DATASETS.register_module()
class NoiseImages(torch.utils.data.Dataset):
    """Images of one size, with a class each."""

    def __init__(self, size, length, library):
        self.size, self.length, self.library = size, length, library

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        image = torch.rand(3, self.size, self.size)
        if self.library == 'mmpretrain':
            from mmpretrain.structures import DataSample

            return dict(inputs=image, data_samples=DataSample().set_gt_label(0))
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=dict(img_shape=image.shape[1:]))
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, self.size, self.size).long())
        return dict(inputs=image, data_samples=sample)


CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='EfficientViTClsHead', num_classes=2, in_channels=192),
)
# Without its batch norm on pooled maps, so that only the backbone has some.
PLAIN_CLASSIFIER = dict(
    CLASSIFIER,
    head=dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=192),
)
FROZEN_CLASSIFIER = dict(PLAIN_CLASSIFIER, backbone=dict(CLASSIFIER['backbone'], norm_eval=True))
SEGMENTOR = dict(
    type='mmseg.EncoderDecoder',
    data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(64, 64)),
    backbone=dict(type='EfficientViT', arch='m0', out_indices=(0, 1, 2)),
    decode_head=dict(
        type='mmseg.FCNHead', num_classes=2, in_channels=192, channels=8, num_convs=1,
        norm_cfg=dict(type='BN'), loss_decode=dict(type='mmseg.CrossEntropyLoss'),
    ),
)  # fmt: skip
# A branch of this head pools the map to one pixel.
POOLING_SEGMENTOR = dict(
    SEGMENTOR,
    decode_head=dict(SEGMENTOR['decode_head'], type='mmseg.PSPHead', pool_scales=(1, 2)),
)
del POOLING_SEGMENTOR['decode_head']['num_convs']


@pytest.fixture
def make_runner(tmp_path):
    def make(model, size, length=5, batch_size=4, drop_last=False, iters=None):
        library = model['type'].partition('.')[0]
        loop = dict(by_epoch=False, max_iters=iters) if iters else dict(max_epochs=1, by_epoch=True)
        runner = Runner.from_cfg(
            dict(
                model=ConfigDict(model),
                work_dir=str(tmp_path),
                train_dataloader=dict(
                    dataset=dict(type='NoiseImages', size=size, length=length, library=library),
                    sampler=dict(type='InfiniteSampler' if iters else 'DefaultSampler'),
                    batch_size=batch_size,
                    drop_last=drop_last,
                ),
                train_cfg=loop,
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                default_scope=library,
                experiment_name=tmp_path.name,
            )
        )
        runner.train_loop  # noqa: B018
        return runner

    return make


@pytest.mark.parametrize(
    ('model', 'size', 'is_refused'),
    [
        (CLASSIFIER, 128, True),
        (PLAIN_CLASSIFIER, 128, False),
        # Its last map has one pixel.
        (PLAIN_CLASSIFIER, 64, True),
        (FROZEN_CLASSIFIER, 64, False),
        (SEGMENTOR, 128, False),
        (POOLING_SEGMENTOR, 128, True),
    ],
    ids=['pooled', 'plain', 'one pixel', 'frozen', 'segmentor', 'pooling segmentor'],
)
def test_a_batch_of_one_image_is_refused_where_training_would_fail(
    make_runner, model, size, is_refused
):
    runner = make_runner(model, size)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    if is_refused:
        with pytest.raises(ConfigError, match=MESSAGE):
            check_batch_sizes(runner)
        with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
            runner.train()
        return
    check_batch_sizes(runner)
    assert all(value.equal(before[name]) for name, value in runner.model.state_dict().items())
    runner.train()
    assert runner.iter == 2


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(length=5), r'one image \(5 images in each process, batch size 4\).*drop_last=True'),
        (dict(length=8, batch_size=1), 'train_dataloader.batch_size is 1, but'),
        (dict(length=5, drop_last=True), None),
        (dict(length=6), None),
        # Batches without epochs are always full.
        (dict(length=5, iters=3), None),
    ],
    ids=str,
)
def test_batches_of_one_image_are_found(make_runner, options, message):
    loop = make_runner(CLASSIFIER, 64, **options).train_loop
    reason = find_single_images(loop)
    assert (reason is None) if message is None else re.search(message, reason)
