import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from mmevit.datasets import LoadReadableImage


@pytest.mark.parametrize('content', [b'', b'no image', None], ids=['empty', 'garbage', 'missing'])
@pytest.mark.parametrize('on_error', ['skip', 'blank'])
def test_an_unreadable_image_is_named_in_a_warning(tmp_path, log, content, on_error):
    path = tmp_path / 'bad.png'
    if content is not None:
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
    (images / '000001.png').write_bytes(b'torn')
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


def test_a_blank_image_is_of_the_kind_that_is_asked_for(tmp_path, log):
    missing = dict(img_path=str(tmp_path / 'missing.png'))
    assert LoadReadableImage('blank')(dict(missing))['img'].shape == (32, 32, 3)
    grey = LoadReadableImage('blank', color_type='grayscale', to_float32=True)(dict(missing))['img']
    assert grey.shape == (32, 32) and grey.dtype == np.float32


def test_a_blank_image_has_the_size_of_its_annotated_segments(tmp_path, log):
    Image.new('L', (7, 5)).save(tmp_path / 'segments.png')
    results = dict(img_path='missing.png', seg_map_path=str(tmp_path / 'segments.png'))
    assert LoadReadableImage('blank')(results)['img'].shape == (5, 7, 3)


def test_an_unknown_answer_is_refused():
    with pytest.raises(ValueError, match="'skip' or 'blank'"):
        LoadReadableImage('ignore')
