"""Exported files as models: results in the original image, as the library's own predict()."""

import pytest
import torch
from making_models import TINY, build_model
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample

from mmevit.deploy import ExportedDetector, ExportedSegmentor, export, fold
from mmevit.deploy.networks import make_exportable

# Height and width of the images without padding, and of the original images.
SIZES = [((90, 128), (180, 256)), ((96, 100), (192, 200))]


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
    metadata = dict(task=network.task, input=dict(shape=[None, 3, None, None]), **network.metadata)
    inputs = inputs[: len(network.input_names)]
    export(network, inputs, path, 'torchscript', ('batch', 'size'), metadata=metadata)
    return path


def test_boxes_and_masks_are_those_of_mmdet_in_the_original_images(mask_rcnn, tmp_path):
    images, samples = torch.rand(2, 3, 96, 128), []
    for size, original in SIZES:
        meta = dict(img_shape=size, ori_shape=original, scale_factor=(2.0**-1, 2.0**-1))
        samples.append(DetDataSample(metainfo=dict(meta, batch_input_shape=(96, 128))))
    with torch.no_grad():
        expected = mask_rcnn.predict(images, [sample.clone() for sample in samples], rescale=True)
    preprocessor = dict(type='mmdet.DetDataPreprocessor')
    file = write(mask_rcnn, tmp_path / 'model.torchscript')
    exported = ExportedDetector(file=file, data_preprocessor=preprocessor)
    for found, wanted in zip(exported(images, samples), expected, strict=True):
        found, wanted = found.pred_instances, wanted.pred_instances
        assert len(wanted) > 5
        assert torch.allclose(found.bboxes, wanted.bboxes, atol=1e-3)
        assert torch.allclose(found.scores, wanted.scores, atol=1e-5)
        assert torch.equal(found.labels, wanted.labels)
        assert found.masks.shape == wanted.masks.shape and wanted.masks.any()
        assert (found.masks != wanted.masks).float().mean() < 1e-4


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
    preprocessor = dict(type='mmseg.SegDataPreProcessor')
    file = write(model, tmp_path / 'model.torchscript')
    exported = ExportedSegmentor(file=file, data_preprocessor=preprocessor)
    for found, wanted in zip(exported(images, samples), expected, strict=True):
        segments = wanted.pred_sem_seg.data
        assert segments.unique().numel() > 2
        assert (found.pred_sem_seg.data == segments).float().mean() > 0.999
