"""`mmevit predict` gives what `tools/infer.py` gives."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from making_exported import first_channel, means, write_exported
from making_models import save_model
from making_videos import write_video
from mmengine.config import Config
from PIL import Image

from mmevit.apis.inference import infer
from mmevit.cli.export import main as export
from mmevit.cli.main import main as mmevit
from mmevit.cli.predict import main
from mmevit.utils.errors import ConfigError

SMALL = dict(model__backbone__arch='m0', model__neck__in_channels=[64, 128, 192])


@pytest.fixture
def retinanet(digits, own_loading, tmp_path):
    """The config of a small detector, its checkpoint and its exported file."""
    options = dict(test_dataloader__dataset__data_root=str(digits), **SMALL)
    config, checkpoint, file = (str(tmp_path / f'model.{end}') for end in ('py', 'pth', 'onnx'))
    torch.manual_seed(0)
    save_model('retinanet_evit_m4_digits', checkpoint, **options).dump(config)
    export([config, checkpoint, '--out', file])
    return config, checkpoint, file


def test_scores_equal_those_of_infer(classifier, digits, own_loading, tmp_path):
    config, checkpoint = map(str, classifier)
    folder = digits / 'classification/val/4'
    export([config, checkpoint, '--out', str(tmp_path / 'm.onnx')])
    infer(Config.fromfile(config), checkpoint, [str(folder)], tmp_path / 'infer', draw=False)
    main([str(tmp_path / 'm.onnx'), str(folder), '--out', str(tmp_path / 'predict')])
    paths = sorted(tmp_path.glob('infer/preds/*'))
    assert len(paths) == len(list(folder.iterdir()))
    for path in paths:
        wanted = json.loads(path.read_text())
        found = json.loads((tmp_path / 'predict/preds' / path.name).read_text())
        assert list(found) == list(wanted) and found['pred_class'] == wanted['pred_class']
        np.testing.assert_allclose(found['pred_scores'], wanted['pred_scores'], atol=1e-5)


@pytest.mark.slow
def test_boxes_equal_those_of_infer(retinanet, digits, tmp_path):
    config, checkpoint, file = retinanet
    images = tmp_path / 'images'
    images.mkdir()
    for index, size in enumerate(((192, 192), (192, 192), (150, 100), (90, 300))):
        image = Image.open(digits / f'val/00000{index + 1}.png')
        image.resize(size).save(images / f'{index}.{"jpg" if index == 2 else "png"}')
    infer(Config.fromfile(config), checkpoint, [str(images)], tmp_path / 'infer')
    main([file, str(images), '--out', str(tmp_path / 'predict'), '--batch-size', '2'])
    names, wanted = (
        {path.relative_to(tmp_path / command) for path in tmp_path.glob(f'{command}/*/*')}
        for command in ('predict', 'infer')
    )
    assert names == wanted and len(names) == 8
    for index in range(4):
        found, wanted = (
            json.loads((tmp_path / command / f'preds/{index}.json').read_text())
            for command in ('predict', 'infer')
        )
        assert list(found) == list(wanted) == ['labels', 'scores', 'bboxes']
        np.testing.assert_allclose(found['scores'], wanted['scores'], atol=1e-5)
        # Boxes with nearly the same score may change places.
        found, wanted = (
            np.c_[content['bboxes'], np.c_[content['labels'], content['scores']] * 1e3]
            for content in (found, wanted)
        )
        nearest = np.abs(found[:, None] - wanted).max(axis=2).min(axis=0)
        assert len(wanted) > 10 and nearest.max() < 1e-2


def test_out_abbreviates_out_dir(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_exported(tmp_path / 'model.onnx', **means())
    cv2.imwrite('a.png', np.full((20, 30, 3), (1, 9, 5), np.uint8))
    mmevit(['predict', 'model.onnx', 'a.png', '--out', 'd'])
    assert capsys.readouterr().out == 'Predictions of 1 images are in d.\n'
    assert {str(path) for path in tmp_path.glob('d/*/*')} == {
        str(tmp_path / 'd/preds/a.json'),
        str(tmp_path / 'd/vis/a.png'),
    }
    assert json.loads((tmp_path / 'd/preds/a.json').read_text())['pred_class'] == 'dog'


def test_unreadable_files_are_skipped_and_counted(tmp_path, capsys, log):
    file = write_exported(tmp_path / 'm.onnx', **means())
    folder = tmp_path / 'in'
    folder.mkdir()
    cv2.imwrite(str(folder / 'good.jpg'), np.full((192, 192, 3), 9, np.uint8))
    (folder / 'corrupt.png').write_bytes(b'corrupt')
    (folder / 'corrupt.mp4').write_bytes(b'corrupt')
    write_video(folder / 'clip.mp4', [folder / 'good.jpg'] * 3)
    main([str(file), str(folder), '--out-dir', str(tmp_path / 'out')])
    assert 'Predictions of 4 images are in' in (printed := capsys.readouterr().out)
    assert '(2 files could not be read)' in printed
    warnings = log.read_text()
    assert 'corrupt.png cannot be decoded' in warnings and 'corrupt.mp4 cannot be read' in warnings
    written = {str(path.relative_to(tmp_path / 'out')) for path in tmp_path.glob('out/*/*')}
    assert written == {'preds/good.json', 'vis/good.jpg', 'preds/clip.json', 'vis/clip.mp4'}
    content = json.loads((tmp_path / 'out/preds/clip.json').read_text())
    assert content['frames_per_second'] == 5 and len(content['frames']) == 3
    assert cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 3

    shutil.rmtree(tmp_path / 'out')
    main([str(file), str(folder / 'good.jpg'), '--out-dir', str(tmp_path / 'out'), '--no-save-vis'])
    assert [path.name for path in tmp_path.glob('out/*')] == ['preds']


def test_segments_are_written_as_by_infer(tmp_path):
    file = write_exported(tmp_path / 'm.onnx', **first_channel())
    image = np.random.default_rng(0).integers(0, 3, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'scene.png'), image)
    main([str(file), str(tmp_path / 'scene.png'), '--out-dir', str(tmp_path)])
    content = json.loads((tmp_path / 'preds/scene.json').read_text())
    assert list(content) == ['classes', 'segments'] and content['segments'] == 'scene.png'
    assert list(content['classes'][0]) == ['label', 'name', 'pixels']
    written = np.asarray(Image.open(tmp_path / 'preds/scene.png'))
    np.testing.assert_array_equal(written, image[..., 0])


@pytest.mark.parametrize('command', ['predict', 'infer'])
def test_inputs_are_never_replaced(command, tmp_path, refuse):
    file = write_exported(tmp_path / 'm.onnx', **means())
    folder = tmp_path / 'photos/vis'
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / 'a.jpg'), np.full((20, 30, 3), 9, np.uint8))
    before = (folder / 'a.jpg').read_bytes()
    if command == 'predict':
        sentence = refuse('predict', file, folder, '--out-dir', folder.parent)
    else:
        with pytest.raises(ConfigError) as caught:
            infer(Config(), 'model.pth', [str(folder)], folder.parent)
        sentence = str(caught.value)
    assert f'in {folder}, where predictions are written. Give another --out-dir' in sentence
    assert [path.name for path in tmp_path.glob('photos/**/*')] == ['vis', 'a.jpg']
    assert (folder / 'a.jpg').read_bytes() == before


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['m.onnx', 'empty'], 'contains no image or video'),
        (['no.onnx', 'corrupt.png'], 'no.onnx is missing. Write it with tools/export.py.'),
        (['m.onnx', 'corrupt.png'], 'None of the files can be read'),
        (
            ['m.onnx', 'corrupt.png', '--batch-size', '0'],
            '--batch-size: 0 is not an integer above 0',
        ),
        (['m.onnx', 'corrupt.png', '--threads', '-1'], '--threads: -1 is not an integer above 0'),
    ],
)
def test_invalid_command_lines_are_one_line_errors(
    arguments, sentence, tmp_path, monkeypatch, refuse
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'corrupt.png').write_bytes(b'corrupt')
    write_exported(tmp_path / 'm.onnx', **means())
    assert sentence in refuse('predict', *arguments)
