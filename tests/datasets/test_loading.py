import errno
import os

import cv2
import mmcv
import mmengine.fileio
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image
from torch.utils.data import DataLoader

from mmevit.datasets import LoadReadableImage
from mmevit.datasets.loading import UnreadableImages
from mmevit.utils.errors import UserError


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / 'bad.png'
    path.write_bytes(b'no image')
    return str(path)


@pytest.mark.parametrize('content', [b'', b'no image'], ids=['empty', 'garbage'])
@pytest.mark.parametrize('on_error', ['skip', 'blank'])
def test_an_unreadable_image_is_warned_of(tmp_path, log, content, on_error):
    path = tmp_path / 'bad.png'
    path.write_bytes(content)
    results = LoadReadableImage(on_error)(dict(img_path=str(path), height=4, width=6))
    if on_error == 'skip':
        assert results is None
    else:
        assert results['img'].shape == (4, 6, 3) and not results['img'].any()
        assert results['img_shape'] == results['ori_shape'] == (4, 6)
    warning = log.read_text()
    assert 'WARNING' in warning and str(path) in warning


def test_a_readable_image_is_loaded_as_mmcv_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'good.png')
    results = LoadReadableImage()(dict(img_path=str(tmp_path / 'good.png')))
    assert (results['img'] == pixels[..., ::-1]).all()


def test_a_data_set_draws_another_image_for_a_corrupt_one(digits, tmp_path):
    images = tmp_path / 'train'
    images.mkdir()
    for path in (digits / 'train').iterdir():
        (images / path.name).symlink_to(path)
    (images / '000001.png').unlink()
    (images / '000001.png').write_bytes(b'corrupt')
    dataset = CocoDataset(
        ann_file=str(digits / 'annotations/instances_train.json'),
        data_prefix=dict(img=str(images)),
        metainfo=dict(classes=tuple('0123456789')),
        pipeline=[
            dict(type='LoadReadableImage'),
            dict(type='mmdet.LoadAnnotations', with_mask=True),
        ],
    )
    drawn = dataset[0]
    assert drawn['img_path'] != str(images / '000001.png')
    assert len(drawn['gt_masks']) == len(drawn['gt_bboxes']) > 0


def test_a_blank_image_has_the_requested_channels_and_type(bad, log):
    assert LoadReadableImage('blank')(dict(img_path=bad))['img'].shape == (32, 32, 3)
    load = LoadReadableImage('blank', color_type='grayscale', to_float32=True)
    grey = load(dict(img_path=bad))['img']
    assert grey.shape == (32, 32) and grey.dtype == np.float32
    with pytest.raises(UserError, match='no known number of channels'):
        LoadReadableImage('blank', color_type='unchanged')(dict(img_path=bad))


def test_a_blank_image_has_the_size_of_its_segmentation_map(bad, tmp_path, log):
    Image.new('L', (7, 5)).save(tmp_path / 'segments.png')
    results = dict(img_path=bad, seg_map_path=str(tmp_path / 'segments.png'))
    assert LoadReadableImage('blank')(results)['img'].shape == (5, 7, 3)


def test_an_invalid_on_error_is_refused():
    with pytest.raises(ValueError, match="'skip' or 'blank'"):
        LoadReadableImage('ignore')


@pytest.mark.parametrize('on_error', ['skip', 'blank'])
@pytest.mark.parametrize('number', [errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_ends_the_run(on_error, number, bad, monkeypatch):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), bad)

    monkeypatch.setattr(mmengine.fileio, 'get', fail)
    with pytest.raises(UserError) as end:
        LoadReadableImage(on_error)(dict(img_path=bad))
    assert str(end.value) == (
        f'The file {bad} cannot be read ({os.strerror(number)}). Check that it exists, that '
        'its disk is mounted and that you have permission to read it.'
    )


def no_memory_in_opencv(*_, **__):
    # More than any machine has, so that OpenCV itself raises.
    cv2.resize(np.zeros((2, 2), np.uint8), (2**30, 2**30))


def no_memory_in_numpy(*_, **__):
    raise MemoryError('Unable to allocate 3.00 TiB')


@pytest.mark.parametrize('fail', [no_memory_in_opencv, no_memory_in_numpy])
def test_too_little_memory_ends_the_run(fail, bad, monkeypatch):
    monkeypatch.setattr(mmcv, 'imfrombytes', fail)
    with pytest.raises(UserError, match=r'^Not enough memory to decode .*bad\.png \(.*allocate'):
        LoadReadableImage()(dict(img_path=bad))


def test_the_message_of_a_worker_process_has_no_traceback():
    class Images:
        __len__ = lambda _: 1  # noqa: E731

        def __getitem__(self, index):
            return LoadReadableImage()(dict(img_path='no/such.png'))

    with pytest.raises(UserError) as end:
        next(iter(DataLoader(Images(), num_workers=1)))
    assert str(end.value).startswith('The file no/such.png cannot be read (No such file')
    assert '\n' not in str(end.value)


def test_each_unreadable_image_is_counted_once(bad, log):
    load = LoadReadableImage()
    load.unreadable = UnreadableImages(num_images=10, max_share=0.2)
    for index in (4, 4, 7):
        assert load(dict(img_path=bad, sample_idx=index)) is None
    assert load.unreadable.flags.tolist() == [0, 0, 0, 0, 1, 0, 0, 1, 0, 0]
    with pytest.raises(UserError, match='3 of 10 images cannot be decoded .* max_share=0.2 '):
        load(dict(img_path=bad, sample_idx=0))
