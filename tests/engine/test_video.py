import cv2
import mmcv
import numpy as np
import pytest
import torch
from making_models import save_model
from mmdet.apis import DetInferencer
from mmseg.apis import MMSegInferencer

from mmevit.errors import ConfigError

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
    return request.param(f'mmevit::efficientvit/{name}.py', str(path), show_progress=False)


def predictions(inferencer, inputs, **options):
    found = inferencer(inputs, **options)['predictions']
    return found if isinstance(found, list) else [found]


def assert_same(found, wanted):
    if isinstance(found, dict):
        assert len(found['scores']) > 10
        for name, values in found.items():
            np.testing.assert_allclose(values, wanted[name], rtol=1e-4, atol=1e-3)
    else:
        assert len(np.unique(found)) > 2 and (found != wanted).mean() < 1e-3


def test_path_array_folder_and_list_give_the_same_predictions(inferencer, digits):
    paths = sorted(str(path) for path in (digits / 'val').iterdir())
    singly = [predictions(inferencer, path)[0] for path in paths[:3]]
    arrays = [mmcv.imread(path) for path in paths[:3]]
    assert_same(predictions(inferencer, arrays[0])[0], singly[0])
    for found, wanted in zip(predictions(inferencer, arrays, batch_size=2), singly, strict=True):
        assert_same(found, wanted)
    found = predictions(inferencer, str(digits / 'val'), batch_size=8)
    assert len(found) == 8


def test_a_video_gives_the_predictions_of_its_frames_and_pictures(inferencer, digits, tmp_path):
    video = tmp_path / 'clip.MP4'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'mp4v'), 5, (192, 192))
    for path in sorted((digits / 'val').iterdir())[:5]:
        writer.write(cv2.imread(str(path)))
    writer.release()
    out = tmp_path / 'out'
    found = predictions(inferencer, str(video), batch_size=2, out_dir=str(out))
    frames = list(mmcv.VideoReader(str(video)))
    for ours, wanted in zip(found, predictions(inferencer, frames), strict=True):
        assert_same(ours, wanted)
    assert len(list((out / 'vis').iterdir())) == 5


def test_a_video_that_cannot_be_read_is_told(inferencer, tmp_path):
    (tmp_path / 'torn.mp4').write_bytes(b'torn')
    with pytest.raises(ConfigError, match=r'torn\.mp4 cannot be read'):
        inferencer(str(tmp_path / 'torn.mp4'))
