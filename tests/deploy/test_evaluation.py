"""Exported files as models: results in the original image, as the library's own predict()."""

import numpy as np
import pytest
import torch
from making_exported import first_channel, write_exported
from making_models import TINY, build_model
from mmdet.models import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.functional import interpolate, one_hot

from mmevit.deploy import ExportedDetector, ExportedSegmentor, export, fold
from mmevit.deploy.evaluation import use_exported_model
from mmevit.deploy.networks import make_exportable
from mmevit.utils.errors import ConfigError

# Height and width of the images without padding, and of the original images.
SIZES = [((90, 128), (180, 512)), ((96, 100), (192, 400))]
SCALE = 0.25, 0.5  # of width and height
DETECTOR = dict(data_preprocessor=dict(type='mmdet.DetDataPreprocessor'))
SEGMENTOR = dict(type='mmseg.SegDataPreProcessor')


def make_samples():
    """Data samples of a batch of 96x128 pixels."""
    return [
        DetDataSample(
            metainfo=dict(
                img_shape=size, ori_shape=original, scale_factor=SCALE, batch_input_shape=(96, 128)
            )
        )
        for size, original in SIZES
    ]


@pytest.fixture(scope='module')
def mask_rcnn():
    torch.manual_seed(0)
    cfg = Config.fromfile('configs/mask-rcnn_evit_m4_digits.py')
    cfg.model.backbone.arch = TINY
    cfg.model.neck.update(in_channels=[16, 24, 32], out_channels=32)
    cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
    cfg.model.test_cfg.rcnn.max_per_img = 20
    head = cfg.model.roi_head
    head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 32
    head.bbox_head.update(in_channels=32, fc_out_channels=32)
    head.mask_head.update(in_channels=32, conv_out_channels=32)
    model = fold(build_model(cfg))
    # Larger masks than noise.
    torch.nn.init.ones_(model.roi_head.mask_head.conv_logits.bias)
    return model


def write(model, path):
    """Export a model to TorchScript."""
    network = make_exportable(model)
    inputs = (torch.rand(1, 3, 96, 128), torch.tensor([[96.0, 128.0]]))
    options = dict(shape=[None, 3, None, None], pad_value=0)
    metadata = dict(task=network.task, input=options, **network.metadata)
    inputs = inputs[: len(network.input_names)]
    export(network, inputs, path, 'torchscript', ('batch', 'size'), metadata=metadata)
    return path


def test_boxes_and_masks_are_those_of_mmdet_in_the_original_images(mask_rcnn, tmp_path):
    images = torch.rand(2, 3, 96, 128)
    with torch.no_grad():
        expected = mask_rcnn.predict(images, make_samples(), rescale=True)
    file = write(mask_rcnn, tmp_path / 'model.torchscript')
    exported = ExportedDetector(file=file, **DETECTOR)
    for found, wanted in zip(exported(images, make_samples()), expected, strict=True):
        found, wanted = found.pred_instances, wanted.pred_instances
        assert len(wanted) > 5
        assert torch.allclose(found.bboxes, wanted.bboxes, atol=1e-3)
        assert torch.allclose(found.scores, wanted.scores, atol=1e-5)
        assert torch.equal(found.labels, wanted.labels)
        assert found.masks.dtype == torch.bool and wanted.masks.any()
        assert found.masks.shape == wanted.masks.shape
        assert (found.masks != wanted.masks).float().mean() < 1e-4


@pytest.mark.parametrize('padding', ['of the batch', 'of the pipeline'])
@pytest.mark.parametrize('count', [0, 3])
def test_masks_of_images_are_resized_as_by_mmdet(count, padding, tmp_path):
    """The head resizes masks from the size of the padded image to the original one."""
    masks, labels = torch.randn(count, 24, 32), torch.arange(count)
    outputs = dict(
        boxes=torch.zeros(3, 4),
        scores=torch.tensor([1.0, 1, 1]),
        labels=torch.where(torch.arange(3) < count, torch.arange(3), -1),
        masks=torch.cat([masks, torch.ones(3 - count, 24, 32)]),
    )
    file = write_exported(
        tmp_path / 'model.onnx',
        {name: tensor.numpy() for name, tensor in outputs.items()},
        masks=dict(kind='image', threshold=0),
    )
    samples = make_samples()
    if padding == 'of the pipeline':  # as by Pad
        for sample in samples:
            sample.set_metainfo(dict(img_shape=(96, 128)))
    found = ExportedDetector(file=file, **DETECTOR)(torch.rand(2, 3, 96, 128), samples)
    settings = ConfigDict(panoptic_on=False, instance_on=True, max_per_image=count)
    head = MaskFormerFusionHead(3, 0, test_cfg=settings)
    logits = 20.0 * one_hot(labels, 4)
    padded = interpolate(masks[:, None], (96, 128), mode='bilinear')[:, 0]
    expected = head.predict([logits] * 2, [padded] * 2, make_samples(), rescale=True)
    for sample, wanted in zip(found, expected, strict=True):
        wanted = wanted['ins_results']
        assert sample.pred_instances.masks.dtype == torch.bool
        assert sample.pred_instances.masks.shape == (count, *sample.ori_shape)
        difference = sample.pred_instances.masks[wanted.labels] != wanted.masks
        assert difference.float().mean() < 1e-4 or not count


def test_panoptic_segments_are_in_the_original_images(tmp_path):
    segments = np.random.default_rng(0).choice([0, 1001, 2001, 3], (96, 128))
    file = write_exported(
        tmp_path / 'model.onnx', dict(segments=segments), task='panoptic-segmentation', num_things=2
    )
    found = ExportedDetector(file=file, **DETECTOR)(torch.rand(2, 3, 96, 128), make_samples())
    for sample, ((height, width), _) in zip(found, SIZES, strict=True):
        expected = segments[:height, :width].repeat(2, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(sample.pred_panoptic_seg.sem_seg[0], expected)


def test_files_of_other_versions_are_refused(tmp_path):
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    outputs = dict(segments=np.zeros((4, 4), np.int64))
    file = write_exported(tmp_path / 'model.onnx', outputs, format=2, version='9.0')
    with pytest.raises(ConfigError, match='has format 2 of mmevit 9.0, but mmevit .* reads'):
        use_exported_model(cfg, file)
    export(nn.Identity(), torch.rand(1, 3, 4, 4), tmp_path / 'model.torchscript', 'torchscript')
    with pytest.raises(ConfigError, match='has no metadata of mmevit'):
        use_exported_model(cfg, tmp_path / 'model.torchscript')


def test_fixed_sizes_are_filled_up_with_the_value_of_the_preprocessor(tmp_path):
    settings = first_channel(shape=(1, 3, 8, 8), input=dict(pad_value=114))
    file = write_exported(tmp_path / 'model.onnx', **settings)
    segmentor = ExportedSegmentor(file=file, data_preprocessor=SEGMENTOR)
    sample = SegDataSample(metainfo=dict(img_shape=(8, 8), ori_shape=(8, 8)))
    (found,) = segmentor(torch.full((1, 3, 6, 5), 7.0), [sample])
    segments = found.pred_sem_seg.data[0]
    assert (segments[:6, :5] == 7).all()
    assert (segments == 114).sum() == 64 - 30


def test_segments_are_those_of_mmseg_without_padding(tmp_path):
    torch.manual_seed(0)
    cfg = Config.fromfile('configs/semantic-fpn_evit_m4_digits.py')
    cfg.model.backbone.arch = TINY
    cfg.model.neck.in_channels = [16, 24, 32]
    model = fold(build_model(cfg))
    images, samples = torch.rand(2, 3, 96, 128), []
    for (height, width), _ in SIZES:
        meta = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(96, 128))
        meta.update(padding_size=[0, 128 - width, 0, 96 - height])
        samples.append(SegDataSample(metainfo=meta))
    with torch.no_grad():
        expected = model.predict(images, [sample.clone() for sample in samples])
    file = write(model, tmp_path / 'model.torchscript')
    exported = ExportedSegmentor(file=file, data_preprocessor=SEGMENTOR)
    for found, wanted in zip(exported(images, samples), expected, strict=True):
        segments = wanted.pred_sem_seg.data
        assert segments.unique().numel() > 2
        assert (found.pred_sem_seg.data == segments).float().mean() > 0.999
