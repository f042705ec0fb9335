import pytest
import torch
from making_models import TINY, build_model
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config

from mmevit.deploy import export, fold, load_exported
from mmevit.deploy.exporting import compare, largest_difference
from mmevit.deploy.networks import AnchorDetector, make_exportable
from mmevit.utils.errors import ConfigError

SIZES = ((150, 200), (160, 197))


def make_detector(class_agnostic):
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.model.backbone.arch = TINY
    cfg.model.neck.update(in_channels=[16, 24, 32], out_channels=64)
    cfg.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1)
    cfg.model.test_cfg.nms = dict(type='nms', iou_threshold=0.5, class_agnostic=class_agnostic)
    return fold(build_model(cfg))


def predict(detector, images):
    samples = [
        DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)),
        )
        for size in SIZES
    ]
    with torch.no_grad():
        samples = detector(images, samples, mode='predict')
    return [sample.pred_instances for sample in samples]


def check_equal(outputs, expected, tolerance):
    for boxes, scores, labels, wanted in zip(*outputs, expected, strict=True):
        count = len(wanted)
        assert count > 20
        assert torch.allclose(scores[:count], wanted.scores, atol=tolerance)
        assert (labels[count:] == -1).all()
        assert (scores[count:] == 0).all()
        # Those of nearly the same score may change places.
        rows, wanted_rows = (
            torch.cat([boxes, 1e3 * labels[:, None], 1e3 * scores[:, None]], dim=1)
            for boxes, labels, scores in (
                (boxes[:count], labels[:count], scores[:count]),
                (wanted.bboxes, wanted.labels, wanted.scores),
            )
        )
        nearest = (rows[:, None] - wanted_rows[None]).abs().amax(dim=2).amin(dim=0)
        assert nearest.max() < tolerance


@pytest.mark.parametrize(
    'class_agnostic',
    [
        pytest.param(True, id='agnostic'),
        pytest.param(False, id='by-class', marks=pytest.mark.slow),
    ],
)
def test_onnx_detector_matches_mmdet_predict(class_agnostic, tmp_path):
    detector = make_detector(class_agnostic)
    network = make_exportable(detector)
    images, sizes = torch.rand(2, 3, 160, 224), torch.tensor(SIZES, dtype=torch.float32)
    expected = predict(detector, images)
    with torch.no_grad():
        check_equal(network(images, sizes), expected, 1e-6)

    # The coarsest map of the example has one pixel, and all its maps fit in one window.
    example = torch.rand(1, 3, 64, 64), torch.tensor([[64.0, 64.0]])
    export(network, example, tmp_path / 'detector.onnx', 'onnx', ('batch', 'size'))
    session = load_exported(tmp_path / 'detector.onnx')
    check_equal(session(images, sizes), expected, 1e-3)

    for shape in ((1, 3, 256, 192), (1, 3, 128, 128), (3, 3, 64, 64), (1, 3, 33, 470)):
        images, sizes = torch.rand(shape), torch.tensor([shape[2:]] * shape[0]).float() - 3
        assert compare(network, session, (images, sizes)) < 1e-4, shape


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            'mask-rcnn_evit_m4_digits',
            'MaskRCNN cannot be exported as a complete model, since .* second stage',
        ),
        ('semantic-fpn_evit_m4_digits', 'EncoderDecoder cannot be exported as a complete model'),
    ],
)
def test_other_models_are_refused_but_their_backbones_are_not(config, message):
    model = build_model(Config.fromfile(f'configs/{config}.py'))
    with pytest.raises(ConfigError, match=message):
        make_exportable(model)
    assert make_exportable(model, 'backbone').output_names == ('stage_0', 'stage_1', 'stage_2')


def test_soft_nms_is_refused():
    cfg = Config.fromfile('configs/retinanet_evit_m4_digits.py')
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(
        ConfigError, match='SyncedRetinaHead cannot be exported as a complete model'
    ):
        make_exportable(build_model(cfg))


def test_heads_with_more_than_scores_and_deltas_are_refused():
    cfg = get_config('mmdet::atss/atss_r50_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    with pytest.raises(
        ConfigError, match='ATSS with ATSSHead cannot be exported as a complete model'
    ):
        make_exportable(build_model(cfg))


def test_number_of_boxes_counts_as_difference():
    boxes, scores = torch.rand(1, 3, 4), torch.tensor([[0.9, 0.8, 0.0]])
    expected = boxes, scores, torch.tensor([[1, 2, -1]])
    swapped = [part.flip(1) for part in expected]
    assert largest_difference(AnchorDetector.match_order(swapped, expected), expected) == 0
    more = boxes, scores, torch.tensor([[1, 2, 3]])
    assert largest_difference(AnchorDetector.match_order(more, expected), expected) > 1


def test_half_precision_detector_decodes_in_float32(tmp_path):
    network = make_exportable(make_detector(True))
    images, sizes = torch.rand(1, 3, 96, 2112), torch.tensor([[96.0, 2101.0]])
    export(network, (images, sizes), tmp_path / 'half.onnx', 'onnx', dtype='float16')
    boxes, scores, labels = load_exported(tmp_path / 'half.onnx')(images, sizes)
    with torch.no_grad():
        expected = network(images, sizes)
    # The best boxes are the same, to less than the pixels that float16 knows out there.
    nearest = (boxes[0, :5, None] - expected[0][0]).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 0.5
    assert (boxes[boxes > 1024] % 1 != 0).any()
