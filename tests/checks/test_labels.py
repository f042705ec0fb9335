"""Labels and segmentation maps are checked before a run."""

import contextlib
import json

import mmengine
import numpy as np
import pytest
from editing import SEGMENTOR, expect_error, load
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.datasets import ADE20KDataset
from PIL import Image

from mmevit.checks import labels
from mmevit.checks.class_counts import count_classes
from mmevit.checks.dataset_info import DatasetInfo
from mmevit.checks.labels import check_labels, refuse_empty_datasets
from mmevit.datasets.image_faults import find_seg_map_faults
from mmevit.datasets.lists import read_data_list


def change(path, function):
    """Change the values of a segmentation map."""
    pixels = np.asarray(Image.open(path)).copy()
    Image.fromarray(function(pixels)).save(path)


def with_value(value, kind=np.uint8):
    def put(pixels):
        pixels = pixels.astype(kind)
        pixels[5, 6] = value
        return pixels

    return put


def check_in_scope(cfg, dataset, split):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        check_labels(cfg, DatasetInfo(dataset, split))


def check(root, split='train', **settings):
    cfg = load(SEGMENTOR, root)
    dataset = cfg[f'{split}_dataloader'].dataset.to_dict()
    check_in_scope(cfg, {**dataset, **settings}, split)


@pytest.mark.parametrize(
    ('split', 'function', 'message'),
    [
        ('train', with_value(11), 'values beyond the classes ({}: 11)'),
        ('val', with_value(257, np.uint16), 'values beyond the classes ({}: 257)'),
        ('train', lambda p: np.stack([p] * 3, 2), 'more than one channel ({}: 3 channels)'),
        (
            'val',
            lambda p: p[:-1],
            'another size than its image ({}: (191, 192), image: (192, 192))',
        ),
    ],
)
def test_a_segmentation_map_that_cannot_be_trained_on_is_refused(root, split, function, message):
    path = root / f'segments/{split}/000003.png'
    change(path, function)
    expected = f'maps of the {split} data that were checked: 1 x segmentation map '
    with expect_error(expected, message.format(path)):
        check(root, split)


def test_segmentation_maps_that_can_be_trained_on_are_not_refused(root):
    change(root / 'segments/train/000003.png', with_value(255))  # ignored
    change(root / 'segments/train/000004.png', with_value(10, np.uint16))
    change(root / 'segments/train/000005.png', lambda pixels: pixels > 0)
    palette = Image.open(root / 'segments/train/000006.png').convert('L')
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(root / 'segments/train/000006.png')
    check(root)


def test_segmentation_maps_that_are_missing_or_corrupt_are_refused(root):
    (root / 'segments/train/000003.png').write_bytes(b'corrupt')
    with expect_error('1 x segmentation map that cannot be decoded'):
        check(root)
    (root / 'segments/train/000003.png').unlink()
    with expect_error('1 of 16 segmentation maps', 'missing, ', '000003.png'):
        check(root)


def test_segmentation_data_without_images_are_refused(digits):
    with expect_error('The train data set has no images'):
        check(digits, img_suffix='.jpeg')


def test_of_many_segmentation_maps_evenly_spaced_ones_are_checked(digits, monkeypatch):
    looked_at = []
    monkeypatch.setattr(labels, 'MAX_SEG_MAPS', 5)
    monkeypatch.setattr(
        labels, 'find_seg_map_faults', lambda entry, **_: looked_at.append(entry['img_path']) or []
    )
    check(digits)
    assert sorted(path[-10:] for path in looked_at) == [
        f'{number:06d}.png' for number in (1, 5, 9, 13)
    ]


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('classes', [None, ('sky', 'wall')])
def test_values_are_checked_as_mmsegmentation_maps_them(tmp_path, reduce_zero_label, classes):
    from mmseg.datasets.transforms import LoadAnnotations

    num_classes = 150 if classes is None else 2
    path = tmp_path / 'map.png'
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    dataset = ADE20KDataset(
        metainfo=None if classes is None else dict(classes=classes),
        reduce_zero_label=reduce_zero_label,
        lazy_init=True,
    )
    entry = dict(
        seg_map_path=str(path),
        reduce_zero_label=reduce_zero_label,
        label_map=dataset.label_map,
        seg_fields=[],
    )
    mapped = LoadAnnotations()(dict(entry))['gt_seg_map'].ravel()
    wrong = [v for v in range(256) if mapped[v] != 255 and mapped[v] >= num_classes]
    found = find_seg_map_faults(entry, num_classes)
    first = ', '.join(map(str, wrong[:4]))
    assert [example for _, example in found] == ([f'{path}: {first}'] if wrong else [])


def classifier(num_classes):
    return dict(type='ImageClassifier', head=dict(type='LinearClsHead', num_classes=num_classes))


@pytest.fixture
def check_list(tmp_path):
    """Check a list of images, of which a.png and b.png are there."""
    for name in 'ab':
        (tmp_path / f'{name}.png').touch()

    def run(content, num_classes=3, **dataset):
        name = 'list.txt' if isinstance(content, str) else 'list.json'
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        kind = 'CustomDataset' if isinstance(content, str) else 'BaseDataset'
        dataset = dict(type=kind, data_root=str(tmp_path), ann_file=name, **dataset)
        cfg = Config(dict(default_scope='mmpretrain', model=classifier(num_classes)))
        check_in_scope(cfg, dataset, 'train')

    return run


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('a.png 0\nb.png 2\n', None),
        ('a.png 0\nb.png 3\n', 'list.txt has 1 labels that are not among the 3 classes'),
        ('a.png -1\nb.png 2\n', 'such as -1 of a.png'),
        ('a.png 0\nb.png dog\n', "list.txt is 'b.png dog'"),
        ('a.png 0\nc.png 2\n', 'c.png. Put the images into'),
        ('', 'list.txt lists no images'),
    ],
)
def test_a_text_list_whose_labels_do_not_fit_is_refused(check_list, content, message):
    with expect_error(message) if message else contextlib.nullcontext():
        check_list(content)


@pytest.mark.parametrize('label', [3, [0, 3], -1])
def test_a_list_in_openmmlabs_layout_whose_labels_do_not_fit_is_refused(check_list, label):
    items = [dict(img_path='a.png', gt_label=2), dict(img_path='b.png')]
    check_list(dict(metainfo={}, data_list=items))
    items[1]['gt_label'] = label
    with expect_error('has 1 labels', ' of b.png'):
        check_list(dict(metainfo={}, data_list=items))
    with expect_error("not in OpenMMLab's layout"):
        check_list([1, 2])


@pytest.mark.parametrize('label', ['1', [0, '1'], None, 1.5])
def test_a_label_that_is_not_an_integer_is_refused_with_file_and_entry(check_list, label):
    items = [dict(img_path='a.png', gt_label=2), dict(img_path='b.png', gt_label=label)]
    with expect_error('list.json ', '`$.data_list[1].gt_label'):
        check_list(dict(metainfo={}, data_list=items))


def test_a_pickled_list_with_numpy_numbers_is_read(tmp_path):
    items = [dict(img_path='a.png', gt_label=np.int64(2)), dict(img_path='b', gt_label=np.ones(2))]
    items[1]['gt_label'] = items[1]['gt_label'].astype(int)
    mmengine.dump(dict(metainfo={}, data_list=items), tmp_path / 'list.pkl')
    assert read_data_list(tmp_path / 'list.pkl') == (['a.png', 'b'], [2, [1, 1]])


def test_missing_images_of_a_list_without_labels_are_reported(check_list):
    check_list('a.png\nb.png\n', with_label=False)
    with expect_error('1 of 2 images of ', 'c d.png. Put'):
        check_list('a.png\nc d.png\n', with_label=False)


@pytest.mark.parametrize(
    ('line', 'message'),
    [('a.png 999', None), ('a.png 1000', 'such as 1000 of a.png'), ('b.png 1', 'b.png')],
)
def test_the_default_list_of_imagenet_is_checked(tmp_path, line, message):
    for name in ('train', 'meta'):
        (tmp_path / name).mkdir()
    (tmp_path / 'train/a.png').touch()
    (tmp_path / 'meta/train.txt').write_text(line)
    dataset = dict(type='ImageNet', data_root=str(tmp_path), split='train')
    cfg = Config(dict(default_scope='mmpretrain', model=classifier(1000)))
    with expect_error(message) if message else contextlib.nullcontext():
        check_in_scope(cfg, dataset, 'train')


def test_maps_that_another_transform_reads_are_not_decoded(root):
    change(root / 'segments/train/000003.png', lambda p: np.stack([p] * 3, 2))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadRGBMap')]
    check(root, pipeline=pipeline)
    (root / 'segments/train/000003.png').unlink()
    with expect_error('1 of 16 segmentation maps', 'missing, ', '000003.png'):
        check(root, pipeline=pipeline)


def test_reduce_zero_label_must_agree_with_the_data_set(digits):
    with expect_error('reduce_zero_label=True, but the data set has reduce_zero_label=False'):
        check(digits, pipeline=[dict(type='LoadAnnotations', reduce_zero_label=True)])


@pytest.mark.parametrize(
    ('model', 'expected'),
    [
        (classifier(7), (7, None)),
        (dict(head=dict(type='EfficientViTClsHead')), (1000, None)),
        (dict(head=dict(type='mmpretrain.MultiLabelClsHead')), (None, None)),
        (dict(decode_head=dict(num_classes=19)), (19, 255)),
        (dict(module=dict(decode_head=[dict(num_classes=9), dict(num_classes=7)])), (7, 255)),
        (dict(decode_head=dict(num_classes=1, ignore_index=3)), (2, 3)),
        (dict(bbox_head=dict(num_classes=80)), (None, None)),
    ],
)
def test_the_number_of_labels_is_that_of_the_head(model, expected):
    assert count_classes(model) == expected


def test_data_whose_images_are_all_filtered_out_are_reported(digits):
    settings = dict(
        ann_file=str(digits / 'annotations/instances_train.json'),
        data_prefix=dict(img=str(digits / 'train')),
        metainfo=dict(classes=tuple('0123456789')),
    )
    message = 'The train data set has no images, or filter_cfg'
    with expect_error(message), refuse_empty_datasets('train'):
        CocoDataset(**settings, filter_cfg=dict(filter_empty_gt=True, min_size=1000))
    with pytest.raises(ValueError, match='another'), refuse_empty_datasets('train'):
        raise ValueError('another')
