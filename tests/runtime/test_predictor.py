import json
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from making_datasets import ORIENTATION
from making_exported import convert_to_openvino, first_channel, means, write_exported
from making_videos import write_video
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn.functional import interpolate

from mmevit.deploy import load_exported
from mmevit.runtime import Prediction, Predictor
from mmevit.utils.errors import ConfigError, UserError
from mmevit.utils.images import read_image

BOXES = np.float32([[10, 20, 30, 40], [0, 5, 15, 12.5], [3, 3, 4, 4], [0, 0, 0, 0]])
SCORES = np.float32([0.9, 0.6, 0.2, 0])
LABELS = np.int64([2, 0, 1, -1])
DETECTIONS = dict(boxes=BOXES, scores=SCORES, labels=LABELS)
# Of width and height, such as from 90x160 pixels (height, width) to 45x40.
RESIZED = [dict(type='LoadImageFromFile'), dict(type='Resize', scale_factor=[0.25, 0.5])]
FOUND = BOXES[:3] * [4, 2, 4, 2]


def random_image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def detect(tmp_path):
    path = write_exported(tmp_path / 'detector.onnx', DETECTIONS, input=dict(pipeline=RESIZED))
    return Predictor(path, batch_size=2)


def test_boxes_are_in_pixels_of_the_image_and_padding_is_dropped(detect):
    prediction = detect(random_image(90, 160))
    np.testing.assert_allclose(prediction.boxes, FOUND)
    np.testing.assert_array_equal(prediction.scores, SCORES[:3])
    np.testing.assert_array_equal(prediction.labels, [2, 0, 1])
    assert prediction.size == (90, 160) and prediction.masks is None
    assert prediction.to_dict() == dict(
        labels=[2, 0, 1], scores=SCORES[:3].tolist(), bboxes=FOUND.tolist()
    )


def test_padding_of_the_pipeline_is_not_scaled(tmp_path):
    steps = [
        dict(type='Resize', scale=[40, 40], keep_ratio=True),
        dict(type='Pad', size=[40, 40], pad_val=dict(img=[114, 114, 114])),
    ]
    mask = np.zeros((4, 10, 10), np.float32)
    mask[:, :5] = 1
    path = write_exported(
        tmp_path / 'padded.onnx',
        DETECTIONS | dict(masks=mask),
        input=dict(pipeline=steps),
        masks=dict(kind='image', threshold=0.5),
    )
    prediction = Predictor(path)(random_image(60, 80))
    np.testing.assert_allclose(prediction.boxes, BOXES[:3] * 2)
    # Rows 0 to 20 of 40, of which the image has 30: two thirds of the image.
    assert prediction.masks[0].all(axis=1).nonzero()[0].tolist() == list(range(40))
    assert not prediction.masks[0, 40:].any()


def test_masks_of_boxes_are_pasted_into_them(tmp_path):
    masks = np.ones((4, 28, 28), np.float32)
    path = write_exported(
        tmp_path / 'masks.onnx',
        DETECTIONS | dict(masks=masks),
        input=dict(pipeline=RESIZED),
        masks=dict(kind='box', threshold=0.5),
    )
    prediction = Predictor(path)(random_image(90, 160))
    assert prediction.masks.shape == (3, 90, 160) and prediction.masks.dtype == bool
    expected = np.zeros((90, 160), bool)
    expected[40:80, 40:120] = True
    np.testing.assert_array_equal(prediction.masks[0], expected)


def test_masks_of_images_are_resized_to_them(tmp_path):
    masks = torch.randn(4, 16, 16)
    path = write_exported(
        tmp_path / 'masks.onnx',
        DETECTIONS | dict(masks=masks.numpy()),
        input=dict(pipeline=RESIZED, pad_size_divisor=32),
        masks=dict(kind='image', threshold=0),
    )
    prediction = Predictor(path)(random_image(90, 160))
    content = interpolate(masks[None, :3], (64, 64), mode='bilinear')[..., :45, :40]
    expected = interpolate(content, (90, 160), mode='bilinear')[0] > 0
    assert prediction.masks.shape == (3, 90, 160)
    assert (prediction.masks != expected.numpy()).mean() < 1e-4
    np.testing.assert_allclose(prediction.boxes, FOUND)


def test_models_without_boxes_get_those_of_their_masks(tmp_path):
    masks = np.zeros((2, 6, 8), np.float32)
    masks[0, 2:4, 1:5] = 1
    arrays = dict(boxes=np.zeros((2, 4), np.float32), scores=SCORES[:2], labels=LABELS[:2])
    path = write_exported(
        tmp_path / 'm.onnx', arrays | dict(masks=masks), masks=dict(kind='image', threshold=0.9)
    )
    prediction = Predictor(path)(random_image(6, 8))
    np.testing.assert_array_equal(prediction.boxes, [[1, 2, 5, 4], [0, 0, 0, 0]])


def test_segments_are_those_of_the_nearest_pixels_without_padding(tmp_path):
    options = dict(pad_size_divisor=32, pad_value=1)
    path = write_exported(tmp_path / 'same.onnx', **first_channel(input=options))
    image = random_image(50, 70) % 3
    prediction = Predictor(path)(image)
    np.testing.assert_array_equal(prediction.segments, image[..., 0])
    content = prediction.to_dict()
    counts = {row['label']: row['pixels'] for row in content['classes']}
    assert counts == {label: (image[..., 0] == label).sum() for label in range(3)}
    assert [row['name'] for row in content['classes']] == ['cat', 'dog', 'tree']

    steps = [dict(type='Resize', scale=[140, 150])]
    path = write_exported(tmp_path / 'larger.onnx', **first_channel(input=dict(pipeline=steps)))
    constant = np.repeat(np.repeat(image[::10, ::10], 10, axis=0), 10, axis=1)
    same = (Predictor(path)(constant).segments == constant[..., 0]).mean()
    assert same > 0.9  # all but the borders


def test_panoptic_segments_have_instances(tmp_path):
    segments = np.int64([[1000, 1000, 2000], [2, 2, 3]])
    path = write_exported(
        tmp_path / 'p.onnx',
        dict(segments=segments),
        task='panoptic-segmentation',
        num_things=1,
    )
    content = Predictor(path)(random_image(2, 3)).to_dict()
    assert content['segments_info'] == [
        dict(id=2, label=2, name='tree', pixels=2, isthing=False),
        dict(id=1000, label=0, name='cat', pixels=2, isthing=True),
        dict(id=2000, label=0, name='cat', pixels=1, isthing=True),
    ]
    assert (content['segments'].astype(int) @ [1, 256, 65536] == segments).all()


def test_path_array_list_folder_and_video_give_the_same(tmp_path):
    predictor = Predictor(write_exported(tmp_path / 'm.onnx', **means()), batch_size=2)
    folder = tmp_path / 'images'
    folder.mkdir()
    sizes = [(20, 30), (20, 30), (20, 30), (40, 20)]
    images = [random_image(*size) // (index + 1) for index, size in enumerate(sizes)]
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / f'{index}.png'), image)
    expected = [image.mean(axis=(0, 1)) for image in images]
    found = predictor(images)
    np.testing.assert_allclose([x.logits for x in found], expected, rtol=1e-5)
    np.testing.assert_allclose(predictor(images[0]).logits, expected[0], rtol=1e-5)
    np.testing.assert_allclose(predictor(str(folder / '1.png')).logits, expected[1], rtol=1e-5)
    (folder / 'torn.png').write_bytes(b'torn')
    by_name = predictor(folder)
    assert list(by_name) == ['0', '1', '2', '3']
    np.testing.assert_allclose(by_name['3'].logits, expected[3], rtol=1e-5)

    scores = np.exp(expected[0] - expected[0].max())
    np.testing.assert_allclose(found[0].scores, scores / scores.sum(), rtol=1e-4)
    assert found[0].to_dict()['pred_class'] == ['cat', 'dog', 'tree'][expected[0].argmax()]

    for index in range(2):
        cv2.imwrite(str(tmp_path / f'{index}.png'), np.full((192, 192, 3), 200 * index, np.uint8))
    pictures = [tmp_path / f'{index}.png' for index in (0, 1, 1)]
    video = write_video(tmp_path / 'v.mp4', pictures)
    frames = [x.logits for x in predictor(video)]
    np.testing.assert_allclose(frames, [[0] * 3, [200] * 3, [200] * 3], atol=5)


def test_fixed_shapes_are_filled_up_and_larger_images_refused(tmp_path):
    path = write_exported(tmp_path / 'fixed.onnx', **means(shape=(4, 3, 32, 64)))
    predictor = Predictor(path)
    images = [np.full((32, 60, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    found = [float(x.logits[0]) for x in predictor(images)]
    np.testing.assert_allclose(found, np.array([10, 20, 30, 40, 50]) * 60 / 64, rtol=1e-5)
    with pytest.raises(UserError, match='has 33x60 pixels .* the file is for 32x64'):
        predictor(random_image(33, 60))


FILES = dict(
    boxes=dict(outputs=DETECTIONS, input=dict(pipeline=RESIZED)),
    masks=dict(
        outputs=DETECTIONS | dict(masks=np.random.default_rng(0).random((4, 28, 28), np.float32)),
        masks=dict(kind='box', threshold=0.5),
    ),
    logits=means(input=dict(channels='RGB', mean=[1, 2, 3], std=[4, 5, 6])),
    segments=first_channel(input=dict(pad_size_divisor=32)),
)


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('num_threads', [0, 1])
def test_openvino_files_give_the_same(name, num_threads, tmp_path):
    pytest.importorskip('openvino')
    path = write_exported(tmp_path / 'model.onnx', **FILES[name])
    images = [random_image(60, 80), random_image(60, 80)[::-1] // 2, random_image(33, 20)]
    found, wanted = (
        Predictor(file, num_threads, batch_size=2)(images)
        for file in (convert_to_openvino(path), path)
    )
    for own, other in zip(found, wanted, strict=True):
        assert own.size == other.size and own.classes == other.classes
        assert getattr(own, name) is not None
        for field in ('boxes', 'scores', 'labels', 'masks', 'segments', 'logits'):
            value, expected = getattr(own, field), getattr(other, field)
            assert (value is None) == (expected is None)
            if value is not None:
                assert value.dtype == expected.dtype
                np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_coco_results_of_the_known_boxes_evaluate_as_perfect(detect):
    ids = [7, 3, 5]
    truth = COCO()
    truth.dataset = dict(
        info={},
        images=[dict(id=11, width=160, height=90)],
        categories=[dict(id=i, name=str(i)) for i in ids],
        annotations=[
            dict(id=1, image_id=11, category_id=5, bbox=[40, 40, 80, 40], area=3200, iscrowd=0),
            dict(id=2, image_id=11, category_id=7, bbox=[0, 10, 60, 15], area=900, iscrowd=0),
            dict(id=3, image_id=11, category_id=3, bbox=[12, 6, 4, 2], area=8, iscrowd=0),
        ],
    )
    truth.createIndex()
    results = detect(random_image(90, 160)).to_coco(image_id=11, category_ids=ids)
    evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_drawing_changes_only_what_is_predicted(detect):
    image = random_image(90, 160) // 4
    plain = Image.fromarray(image[..., ::-1])
    prediction = detect(image)
    assert prediction.draw(image, score_thr=1) == plain
    drawn = np.asarray(prediction.draw(image, score_thr=0.8))
    changed = (drawn != np.asarray(plain)).any(axis=2)
    assert changed[40, 40:120].all() and not changed[:, :35].any()


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
@pytest.mark.parametrize('orientation', [3, 6])
def test_files_are_drawn_as_they_were_read(color_type, orientation, tmp_path):
    loader = dict(RESIZED[0], color_type=color_type)
    path = write_exported(
        tmp_path / 'detector.onnx', DETECTIONS, input=dict(pipeline=[loader, RESIZED[1]])
    )
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(random_image(90, 160)).save(photo := tmp_path / 'photo.png', exif=exif)
    prediction = Predictor(path)(photo)
    assert prediction.draw(photo) == prediction.draw(read_image(photo, loader))


@pytest.mark.parametrize('num_things', [2, None], ids=['panoptic', 'semantic'])
def test_segments_are_drawn_in_different_colors_and_those_without_a_class_not(num_things):
    stuff, unlabelled = 2, 3
    things = [0, 1] if num_things is None else [1000, 2000, 3001, 4001]
    ids = np.array([stuff, *things, unlabelled])
    black = np.zeros((1, len(ids), 3), np.uint8)
    classes = ['cat', 'dog', 'tree']
    prediction = Prediction((1, len(ids)), classes, segments=ids[None], num_things=num_things)
    colors = np.asarray(prediction.draw(black))[0].astype(int)
    assert not colors[-1].any()
    differences = np.abs(colors[:, None] - colors).max(axis=2)
    assert differences[~np.eye(len(ids), dtype=bool)].min() > 20


@pytest.mark.parametrize('classes', [None, ['cat', 'dog']])
def test_labels_without_names_are_numbered(classes, tmp_path):
    labels = np.int64([0, 1200, 2, -1])
    path = write_exported(tmp_path / 'm.onnx', DETECTIONS | dict(labels=labels), classes=classes)
    image = random_image(60, 80)
    prediction = Predictor(path)(image)
    assert prediction.classes[1200] == 'class 1200' and prediction.classes[2] == 'class 2'
    assert prediction.classes[0] == (classes or ['class 0'])[0]
    assert prediction.to_dict()['labels'] == [0, 1200, 2]
    assert prediction.draw(image, 0) != prediction.draw(image, 0.95)

    path = write_exported(tmp_path / 'm.onnx', **means(classes=classes))
    image[..., 2] = 255
    prediction = Predictor(path)(image)
    assert prediction.to_dict()['pred_class'] == 'class 2'
    prediction.draw(image)


@pytest.mark.parametrize('labels', [[[0, 3]], [[0, 1200]]])
def test_segments_of_labels_without_any_names_are_numbered(labels, tmp_path):
    path = write_exported(tmp_path / 'm.onnx', dict(segments=np.int64(labels)), classes=None)
    rows = Predictor(path)(random_image(1, 2)).to_dict()['classes']
    assert [row['name'] for row in rows] == [f'class {label}' for label in labels[0]]


def save_invalid(path, kind):
    """Write an invalid file."""
    if kind == 'newer':
        write_exported(path, DETECTIONS, format=2, version='9.0')
    elif kind == 'older':
        write_exported(path, DETECTIONS, format=0)
    elif kind == 'backbone':
        write_exported(path, DETECTIONS, task='features')
    elif kind == 'inputs':
        write_exported(path, dict(logits=SCORES), task='detection')
    elif kind == 'foreign':
        model = onnx.load(write_exported(path, DETECTIONS))
        del model.metadata_props[:]
        onnx.save(model, path)
    elif kind == 'truncated':
        write_exported(path, DETECTIONS)
        path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ('kind', 'sentence'),
    [
        ('newer', 'format 2 of mmevit 9.0, but mmevit .* reads format 1'),
        ('older', 'format 0 of mmevit'),
        ('backbone', 'is a backbone, without predictions'),
        ('inputs', 'has the inputs images, image_sizes and outputs logits, not those of detection'),
        ('foreign', 'has no metadata of mmevit'),
        ('truncated', r'cannot be loaded \('),
        ('missing', 'is missing. Write it'),
    ],
)
def test_invalid_files_are_one_line_errors(kind, sentence, tmp_path):
    save_invalid(tmp_path / 'm.onnx', kind)
    with pytest.raises(ConfigError, match=sentence) as caught:
        Predictor(tmp_path / 'm.onnx')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('source', 'sentence'),
    [
        ('v.mp4', 'v.mp4 cannot be read. Check that the file is a video'),
        (np.zeros((3, 4, 3)), r'is float64 of shape \(3, 4, 3\)'),
        (np.zeros((3, 4), np.uint8), r'needs uint8 of shape \(H, W, 3\)'),
        ('no.png', 'no.png cannot be decoded'),
    ],
    ids=['video', 'dtype', 'shape', 'path'],
)
def test_invalid_sources_are_one_line_errors(source, sentence, detect, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'v.mp4').write_bytes(b'no video')
    with pytest.raises(UserError, match=sentence):
        detect(source)


def save_images(folder, shape):
    """Write images that fit, and then one of another shape; return their paths."""
    folder.mkdir()
    for name in 'ab':
        cv2.imwrite(str(folder / f'{name}.png'), random_image(60, 80))
    cv2.imwrite(str(folder / 'unsuitable.png'), np.zeros(shape, np.uint8))
    return sorted(folder.iterdir())


@pytest.mark.parametrize('kind', ['folder', 'paths'])
@pytest.mark.parametrize(
    ('shape', 'sentence'),
    [
        ((60, 80, 4), r'is uint8 of shape \(60, 80, 4\)'),
        ((60, 80), r'is uint8 of shape \(60, 80, 1\)'),
        ((60, 90, 3), 'has 60x90 pixels'),
    ],
    ids=['alpha', 'grayscale', 'size'],
)
def test_unsuitable_image_is_named(kind, shape, sentence, tmp_path):
    loader = dict(type='LoadImageFromFile', color_type='unchanged')
    path = write_exported(
        tmp_path / 'm.onnx', **means(shape=(1, 3, 60, 80), input=dict(pipeline=[loader]))
    )
    paths = save_images(tmp_path / 'images', shape)
    source, name = (tmp_path / 'images', 'unsuitable') if kind == 'folder' else (paths, paths[2])
    with pytest.raises(UserError, match=f'^{name} {sentence}'):
        Predictor(path)(source)


def test_batches_of_no_image_are_refused(tmp_path):
    predictor = Predictor(write_exported(tmp_path / 'm.onnx', **means()), batch_size=0)
    with pytest.raises(UserError, match='batch_size is 0, but must be 1 or more'):
        predictor(random_image(60, 80))


def test_unsuitable_array_is_named_by_its_index(tmp_path):
    predictor = Predictor(write_exported(tmp_path / 'm.onnx', **means()), batch_size=3)
    images = [random_image(60, 80) for _ in range(3)]
    images[1] = images[1] / 255
    with pytest.raises(UserError, match='^array 1 is float64'):
        predictor(images)


RUNTIMES = [
    ('onnxruntime', 'm.onnx'),
    ('openvino', 'm.xml'),
    ('ai_edge_litert', 'm.tflite'),
    ('executorch', 'm.pte'),
    ('ncnn', 'm.param'),
]


@pytest.mark.parametrize(('module', 'name'), RUNTIMES)
def test_missing_runtimes_are_named(module, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    for part in ('interpreter', 'runtime'):
        monkeypatch.delitem(sys.modules, f'{module}.{part}', raising=False)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f'{module}, which is not installed. Run pip install'):
        Predictor(tmp_path / name)


@pytest.mark.parametrize(('module', 'name'), RUNTIMES[3:])
@pytest.mark.parametrize('load', [Predictor, load_exported])
def test_models_without_metadata_are_refused(load, module, name, tmp_path):
    pytest.importorskip(module)
    for path in (tmp_path / name, tmp_path / 'm.bin'):
        path.write_bytes(b'a model of others')
    with pytest.raises(ConfigError, match=r'm\.(pte|bin) has no metadata of mmevit'):
        load(tmp_path / name)


def test_missing_opencv_is_named(detect, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(ConfigError, match='Videos need OpenCV'):
        detect(tmp_path / 'clip.mp4')
