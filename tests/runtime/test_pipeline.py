"""Reading and preprocessing equal those of mmcv."""

import os

import cv2
import mmcv
import numpy as np
import pytest
import torch
from making_datasets import ORIENTATION
from making_exported import means, write_exported
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from plug_in_table import NECKS

from mmevit.datasets.sampling import find_test_pipeline
from mmevit.runtime import Predictor
from mmevit.runtime.pipeline import apply_step, choose_steps
from mmevit.utils.errors import ConfigError, UserError
from mmevit.utils.images import read_image, resize


def random_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = np.random.default_rng(0).integers(1, 200, (40, 4)).tolist()
# Equal sides, halves and doubles take other paths in OpenCV.
SIZES += [[60, 80, 30, 40], [60, 80, 60, 40], [61, 80, 30, 40], [60, 80, 120, 160], [9, 7, 9, 7]]


@pytest.mark.parametrize('dtype', ['uint8', 'float32'])
def test_bilinear_resizing_equals_opencv(dtype):
    for height, width, *size in SIZES:
        image = random_image(height, width).astype(dtype)
        expected = cv2.resize(image, size[::-1])
        # OpenCV computes float32 with other instructions on each processor.
        tolerance = 0 if dtype == 'uint8' else 0.02
        np.testing.assert_allclose(resize(image, size, 'cv2', 'bilinear'), expected, atol=tolerance)


def test_bicubic_resizing_equals_opencv_but_for_rounding():
    for height, width, *size in SIZES:
        image = random_image(height, width)
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC).astype(int)
        difference = np.abs(resize(image, size, 'cv2', 'bicubic') - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.1


OURS = (
    'evit_m0_digits',
    'evit_m0_in1k',
    'evit_m0_pets',
    'evit_m5_in1k-384',
    'mask-rcnn_evit_m4_digits',
    'retinanet_evit_m4',
    'semantic-fpn_evit_m4',
    'semantic-fpn_evit_m4_digits',
)


@pytest.mark.parametrize(
    'name', [*NECKS, *(f'mmevit::efficientvit/{name}.py' for name in OURS)], ids=os.path.basename
)
def test_test_pipelines_equal_those_of_the_libraries(name, tmp_path):
    cfg = get_config(name)
    init_default_scope(cfg.default_scope)
    steps = [dict(step) for step in find_test_pipeline(cfg) if 'Annotations' not in step['type']]
    steps[0].pop('on_error', None)
    keys = ('ori_shape', 'img_shape', 'scale_factor')
    steps[-1]['meta_keys'] = keys
    pipeline = Config(dict(pipeline=find_test_pipeline(cfg))).to_dict()['pipeline'][:-1]
    loader, own_steps = choose_steps(pipeline, can_crop=True)
    for height, width in ((30, 41), (480, 333)):
        path = tmp_path / f'{height}.png'
        cv2.imwrite(str(path), random_image(height, width))
        packed = Compose(steps)(dict(img_path=str(path)))
        image = read_image(path, loader)
        image = image.astype(np.float32) if loader.get('to_float32') else image
        for step in own_steps:
            image = apply_step(step, image)
        expected = packed['inputs'].numpy().transpose(1, 2, 0)
        tolerance = 0 if expected.dtype == np.uint8 else 0.02
        np.testing.assert_allclose(image, expected, atol=tolerance)
        if 'Det' in steps[-1]['type']:
            assert image.shape[:2] == packed['data_samples'].img_shape


MODES = {
    'grey': lambda image: image.convert('L'),
    'grey with alpha': lambda image: image.convert('LA'),
    'alpha': lambda image: image.convert('RGBA'),
    'palette': lambda image: image.convert('P'),
    'two colors': lambda image: image.convert('1'),
    '16 bits': lambda image: Image.fromarray(np.uint16(image.convert('L')) * 255),
}
LOADERS = [
    dict(),
    dict(imdecode_backend='pillow'),
    dict(color_type='grayscale', imdecode_backend='pillow'),
]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('loader', LOADERS, ids=str)
def test_images_of_all_modes_are_read_as_by_mmcv(mode, loader, tmp_path):
    if mode == '16 bits' and loader:
        pytest.skip('Pillow clips such images, so that mmcv with Pillow has white ones')
    image = Image.fromarray(random_image(30, 40)).resize((40, 30))
    MODES[mode](image).save(path := tmp_path / 'image.png')
    flag, backend = loader.get('color_type', 'color'), loader.get('imdecode_backend')
    expected = np.atleast_3d(mmcv.imread(path, flag, backend=backend))
    np.testing.assert_array_equal(read_image(path, loader), expected)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'grayscale'])
def test_orientation_and_jpeg_are_as_in_mmcv(orientation, flag, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    smooth = Image.fromarray(random_image(3, 4)).resize((40, 30))
    smooth.save(path := tmp_path / 'image.jpg', exif=exif, quality=90)
    expected = np.atleast_3d(mmcv.imread(path, flag)).astype(int)
    found = read_image(path, dict(color_type=flag))
    assert found.shape == expected.shape
    # The decoders of Pillow and OpenCV are builds of one library.
    assert np.abs(found - expected).max() <= 1


def test_normalization_and_padding_equal_the_data_preprocessor(tmp_path):
    options = dict(mean=[1.5, 2, 3], std=[4, 5.5, 6], pad_size_divisor=32)
    preprocessor = MODELS.build(
        dict(type='mmdet.DetDataPreprocessor', bgr_to_rgb=True, pad_value=7, **options)
    )
    image = random_image(50, 70)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    data = preprocessor(
        pseudo_collate([dict(inputs=tensor, data_samples=None)]) | dict(data_samples=None)
    )
    expected = data['inputs'][0]
    path = write_exported(
        tmp_path / 'means.onnx', **means(input=dict(channels='RGB', pad_value=7, **options))
    )
    predictor = Predictor(path)
    run, captured = predictor.run, []
    predictor.run = lambda arrays: captured.append(arrays) or run(arrays)
    prediction = predictor(image)
    np.testing.assert_array_equal(captured[0]['images'][0], expected)
    np.testing.assert_allclose(prediction.logits, expected.mean(dim=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomFlip', prob=0.5),
        dict(type='CenterCrop', crop_size=8),
        dict(type='Resize', scale=(8, 8), interpolation='lanczos'),
        dict(type='Pad', size=(8, 8), padding_mode='reflect'),
    ],
    ids=lambda step: step['type'],
)
def test_unknown_steps_and_options_are_refused_by_name(step):
    with pytest.raises(ConfigError, match=f'does not support the step .*{step["type"]}'):
        choose_steps([dict(type='LoadImageFromFile'), step], can_crop=False)


def test_undecodable_image_is_refused(tmp_path):
    (tmp_path / 'torn.png').write_bytes(b'torn')
    with pytest.raises(UserError, match='torn.png cannot be decoded'):
        read_image(tmp_path / 'torn.png', {})
