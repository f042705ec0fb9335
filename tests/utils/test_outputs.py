import json

import cv2
import numpy as np
import pytest
from making_videos import write_video

from mmevit.utils.images import read_image
from mmevit.utils.outputs import predict_files

SIZE = 192, 192


@pytest.fixture
def files(tmp_path):
    image = np.full((*SIZE, 3), (200, 100, 0), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    video = write_video(tmp_path / 'clip.mp4', [tmp_path / 'a.png'] * 2)
    (tmp_path / 'corrupt.mp4').write_bytes(b'corrupt')
    return dict(a=tmp_path / 'a.png', clip=video, corrupt=tmp_path / 'corrupt.mp4')


def read_all(images):
    return ((name, read_image(path, {})) for name, path in images.items())


@pytest.mark.parametrize('largest', [200, 300])
def test_predictions_of_images_and_videos_are_written(largest, files, tmp_path):
    segments = np.full(SIZE, largest, np.uint8 if largest < 256 else np.uint16)
    totals = []

    def run(images, total):
        totals.append(total)
        for name, image in images:
            yield name, dict(score=np.float32([0.5]), segments=segments), image[..., ::-1]

    assert predict_files(files, tmp_path / 'out', read_all, run) == (3, 1)
    assert totals == [1, 2]
    written = {str(path.relative_to(tmp_path / 'out')) for path in tmp_path.glob('out/**/*.*')}
    names = 'a.json', 'a.png', 'clip.json', 'clip/000000.png', 'clip/000001.png'
    assert written == {'vis/a.png', 'vis/clip.mp4', *(f'preds/{name}' for name in names)}
    content = json.loads((tmp_path / 'out/preds/a.json').read_text())
    assert content == dict(score=[0.5], segments='a.png')
    frames = json.loads((tmp_path / 'out/preds/clip.json').read_text())['frames']
    assert [frame['segments'] for frame in frames] == ['clip/000000.png', 'clip/000001.png']
    for name in ('a', 'clip/000001'):
        found = cv2.imread(str(tmp_path / f'out/preds/{name}.png'), cv2.IMREAD_UNCHANGED)
        assert found.dtype == segments.dtype
        np.testing.assert_array_equal(found, segments)
    # In the colors of the inputs.
    drawn = [cv2.imread(str(tmp_path / 'out/vis/a.png'))]
    drawn.append(cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4')).read()[1])
    for picture in drawn:
        np.testing.assert_allclose(picture, np.full_like(picture, 1) * (200, 100, 0), atol=12)


def test_without_pictures_only_json_is_written(files, tmp_path):
    def run(images, total):
        return ((name, {}, None) for name, _ in images)

    predict_files(files, tmp_path / 'out', read_all, run)
    assert {path.name for path in tmp_path.glob('out/**/*')} == {'preds', 'a.json', 'clip.json'}
