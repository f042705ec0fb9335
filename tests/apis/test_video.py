import shutil

import cv2
import mmcv
import numpy as np
import pytest
import torch
from making_models import save_model
from making_videos import write_video

from mmevit.apis import DetInferencer, MMSegInferencer
from mmevit.utils.errors import ConfigError, UserError
from mmevit.utils.videos import Video, open_writer

CONFIGS = {
    DetInferencer: 'retinanet_evit_m4_digits',
    MMSegInferencer: 'semantic-fpn_evit_m4_digits',
}


@pytest.fixture(scope='module', params=CONFIGS, ids=lambda kind: kind.__name__)
def inferencer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('models') / 'model.pth'
    torch.manual_seed(0)
    name = CONFIGS[request.param]
    save_model(name, path)
    return request.param(f'mmevit::efficientvit/{name}.py', str(path))


def predictions(inferencer, inputs, **options):
    found = inferencer(inputs, **options)['predictions']
    return found if isinstance(found, list) else [found]


def is_same(found, wanted):
    try:
        assert_same(found, wanted)
    except AssertionError:
        return False
    return True


def assert_same(found, wanted):
    if isinstance(found, dict):
        assert len(found['scores']) > 10
        for name, values in found.items():
            np.testing.assert_allclose(values, wanted[name], rtol=1e-4, atol=1e-3)
    else:
        assert len(np.unique(found)) > 2 and (found != wanted).mean() < 1e-3


def test_path_array_directory_and_list_give_the_same_predictions(inferencer, digits, tmp_path):
    paths = sorted((digits / 'val').iterdir())[:3]
    singly = [predictions(inferencer, str(path))[0] for path in paths]
    arrays = [mmcv.imread(path) for path in paths]
    assert_same(predictions(inferencer, arrays[0])[0], singly[0])
    for found, wanted in zip(predictions(inferencer, arrays, batch_size=2), singly, strict=True):
        assert_same(found, wanted)
    for path in paths:
        shutil.copy(path, tmp_path)
    found = predictions(inferencer, str(tmp_path), batch_size=3)
    assert len(found) == 3
    assert any(is_same(one, singly[0]) for one in found)


def test_video_gives_the_predictions_of_its_frames_and_pictures(inferencer, digits, tmp_path):
    video = write_video(tmp_path / 'clip.MP4', sorted((digits / 'val').iterdir())[:3])
    out = tmp_path / 'out'
    found = predictions(inferencer, str(video), batch_size=2, out_dir=str(out))
    frames = list(mmcv.VideoReader(str(video)))
    for ours, wanted in zip(found, predictions(inferencer, frames), strict=True):
        assert_same(ours, wanted)
    assert len(list((out / 'vis').iterdir())) == 3


def test_unreadable_video_raises_user_error(inferencer, tmp_path):
    (tmp_path / 'corrupt.mp4').write_bytes(b'corrupt')
    with pytest.raises(UserError, match=r'corrupt\.mp4 cannot be read'):
        inferencer(str(tmp_path / 'corrupt.mp4'))


def test_video_without_a_frame_count_is_read(digits, tmp_path, monkeypatch):
    path = write_video(tmp_path / 'clip.mp4', sorted((digits / 'val').iterdir())[:3])

    class Capture:
        def __init__(self, path, open=cv2.VideoCapture):
            self.capture = open(path)
            self.read = self.capture.read

        def get(self, name):
            # As OpenCV says of files that a browser has recorded.
            is_count = name == cv2.CAP_PROP_FRAME_COUNT
            return -46116860184273879 if is_count else self.capture.get(name)

    monkeypatch.setattr(cv2, 'VideoCapture', Capture)
    video = Video(path)
    assert len(video) == 0 and len(list(video)) == len(list(video)) == 3


@pytest.mark.parametrize(('rate', 'written'), [(12.5, 12.5), (0, 25), (90000, 25)])
def test_video_is_written_with_its_frame_rate_or_the_default(rate, written, tmp_path):
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    with open_writer(tmp_path / 'clip.mp4', rate, (96, 64)) as writer:
        writer.write(image)
    video = mmcv.VideoReader(str(tmp_path / 'clip.mp4'))
    assert (len(video), video.fps, video.resolution) == (1, written, (96, 64))


def test_unsupported_video_raises_config_error_and_leaves_no_file(tmp_path):
    with (
        pytest.raises(ConfigError, match='OpenCV cannot write'),
        open_writer(tmp_path / 'clip.mp4', 25, (0, 0)),
    ):
        pass
    assert not list(tmp_path.iterdir())
