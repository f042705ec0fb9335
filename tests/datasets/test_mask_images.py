"""Against mmsegmentation's loading of the maps that are written, and what the test has drawn."""

import json

import numpy as np
import pytest
from making_labels import make_shape, plain_photos, write_shapes, write_voc
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from PIL import Image
from pycocotools import mask as coco_masks

from mmevit.datasets.formats import complete_splits, read_labels, write_seg_maps
from mmevit.utils.errors import ConfigError

CLASSES = ('road', 'sky 2', 'car')
COLORS = ((0, 0, 0), (12, 200, 7), (128, 64, 128))
SIZE = 24, 40


@pytest.fixture
def maps():
    """Class numbers of the pixels of five images, 255 where they are ignored."""
    rng = np.random.default_rng(0)
    return [
        np.where(rng.random(SIZE) < 0.1, 255, rng.integers(0, 3, SIZE)).astype(np.uint8)
        for _ in range(5)
    ]


def save(path, pixels, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert('P')
        image.putpalette(palette)
    image.save(path)


def save_images(folder, names):
    for name in names:
        rng = np.random.default_rng(list(str(name).encode()))
        save(folder / f'{name}.jpg', rng.integers(0, 256, (*SIZE, 3), np.uint8))


def write_folders(root, maps):
    for number, pixels in enumerate(maps):
        split = 'train' if number < 3 else 'val'
        save_images(root / 'images' / split, [number])
        save(root / 'masks' / split / f'{number}.png', pixels)
    (root / 'classes.txt').write_text('\n'.join(CLASSES))


def write_suffixes(root, maps):
    """As Roboflow exports them."""
    for number, pixels in enumerate(maps):
        folder = root / ('train' if number < 3 else 'valid')
        save_images(folder, [number])
        save(folder / f'{number}_mask.png', pixels)
        rows = [f'{value}, {name}' for value, name in enumerate(CLASSES)]
        (folder / '_classes.csv').write_text('Pixel Value, Class\n' + '\n'.join(rows))


def write_voc_maps(root, maps):
    """As CVAT exports them, with an image without a map."""
    save_images(root / 'JPEGImages', [0, 1, 2, 3, 4, 'other'])
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = COLORS, (224, 224, 192)
    for number, pixels in enumerate(maps):
        palette = colors.ravel().tolist() if number % 2 else None
        content = pixels if palette else colors[pixels]
        save(root / 'SegmentationClass' / f'{number}.png', content, palette)
        save(root / 'SegmentationObject' / f'{number}.png', pixels // 2)
    folder = root / 'ImageSets/Segmentation'
    folder.mkdir(parents=True)
    (folder / 'train.txt').write_text('0\n1\n2\n')
    (folder / 'val.txt').write_text('3\n4\n')
    rows = [f'{name}:{r},{g},{b}::' for name, (r, g, b) in zip(CLASSES, COLORS, strict=True)]
    (root / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\n' + '\n'.join(rows))


def write_color_folders(root, maps):
    """As CamVid has them, with a color for ignored pixels that has no name."""
    colors = np.zeros((256, 3), np.uint8)
    colors[:3], colors[255] = COLORS, (255, 255, 255)
    for number, pixels in enumerate(maps):
        split = 'train' if number < 3 else 'val'
        save_images(root / split, [number])
        save(root / f'{split}_labels' / f'{number}_L.png', colors[pixels])
    rows = [f'{r} {g} {b}\t{name}' for name, (r, g, b) in zip(CLASSES, COLORS, strict=True)]
    (root / 'label_colors.txt').write_text('\n'.join(rows))


def load(data, out):
    """Load the written maps with mmsegmentation, by the name of the image."""
    classes, lists = write_seg_maps(data, out)
    init_default_scope('mmseg')
    loaded = {}
    for path in lists.values():
        dataset = BaseSegDataset(
            data_root=str(data.root),
            ann_file=str(path),
            data_prefix=dict(img_path='', seg_map_path=str(out)),
            img_suffix='',
            seg_map_suffix='.png',
            metainfo=dict(classes=classes),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
        )
        for sample in dataset:
            name = sample['img_path'].rpartition('/')[2].partition('.')[0]
            loaded[name] = sample['gt_seg_map']
            assert sample['img'].shape[:2] == sample['gt_seg_map'].shape
    return classes, loaded


@pytest.mark.parametrize(
    'write', [write_folders, write_suffixes, write_color_folders, write_voc_maps]
)
def test_usual_layouts_give_the_same_maps(write, maps, tmp_path):
    root = tmp_path / 'data ü'
    write(root, maps)
    data = complete_splits(read_labels(root), 0.2)
    assert data.is_semantic and {s: len(own) for s, own in data.splits.items()} == dict(
        train=3, val=2
    )
    classes, loaded = load(data, tmp_path / 'out')
    assert classes == CLASSES
    for number, pixels in enumerate(maps):
        np.testing.assert_array_equal(loaded[str(number)], pixels)
    assert [fault.name for fault in data.faults.counts] == ['map with white or outlines']


def test_values_are_classes_without_names(maps, tmp_path):
    write_folders(tmp_path / 'data', maps)
    (tmp_path / 'data/classes.txt').unlink()
    assert load(read_labels(tmp_path / 'data'), tmp_path / 'out')[0] == ('0', '1', '2')


def test_white_pixels_of_black_and_white_masks_are_the_foreground(maps, tmp_path):
    white = [np.where(pixels == 1, 255, 0).astype(np.uint8) for pixels in maps]
    write_folders(tmp_path / 'data', white)
    (tmp_path / 'data/classes.txt').unlink()
    classes, loaded = load(read_labels(tmp_path / 'data'), tmp_path / 'out')
    assert classes == ('background', 'foreground')
    np.testing.assert_array_equal(loaded['4'], maps[4] == 1)


def test_smaller_of_overlapping_objects_is_on_top_of_the_background(tmp_path):
    root = tmp_path / 'data'
    save_images(root, [1])
    small = make_shape('car', [[10, 10], [20, 10], [20, 20], [10, 20]])
    large = make_shape('road', [[0, 4], [40, 4], [40, 24], [0, 24]])
    write_shapes(root / '1.json', [small, large], SIZE[::-1])
    classes, loaded = load(read_labels(root), tmp_path / 'out')
    expected = np.zeros(SIZE)
    expected[4:], expected[10:20, 10:20] = 2, 1
    assert classes == ('background', 'car', 'road')
    np.testing.assert_array_equal(loaded['1'], expected)


def test_brush_masks_of_cvat_that_are_marked_as_crowds_keep_their_class(maps, tmp_path):
    root = tmp_path / 'data'
    save_images(root, [1])
    code = coco_masks.encode(np.asfortranarray(maps[0] == 1, np.uint8))
    mask = dict(size=list(SIZE), counts=code['counts'].decode())
    annotation = dict(id=1, image_id=1, category_id=1, iscrowd=1, segmentation=mask)
    content = dict(
        images=[dict(id=1, file_name='1.jpg')],
        categories=[dict(id=1, name='road')],
        annotations=[annotation],
    )
    (root / 'x.json').write_text(json.dumps(content))
    classes, loaded = load(read_labels(root), tmp_path / 'out')
    assert classes == ('background', 'road')
    np.testing.assert_array_equal(loaded['1'], maps[0] == 1)


def test_maps_next_to_boxes_are_read_on_request(tmp_path):
    photos = plain_photos(2)
    write_voc(tmp_path, photos)
    for photo in photos['']:
        save(tmp_path / 'SegmentationClass' / photo.name, np.eye(48, 64, dtype=np.uint8))
    assert not read_labels(tmp_path).is_semantic
    assert read_labels(tmp_path, 'masks').classes == ('background', 'foreground')
    assert read_labels(tmp_path, prefers_maps=True).is_semantic


def test_photographs_in_folders_named_after_masks_are_not_maps(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ('mask', 'no_mask'):
        save(tmp_path / folder / '1.png', rng.integers(0, 256, (*SIZE, 3), np.uint8))
    assert read_labels(tmp_path) is None


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda pixels: pixels + 3, 'values without a name: 3, 4, 5'),
        (lambda pixels: np.arange(960).reshape(SIZE).astype(np.uint8), 'values without a name'),
    ],
)
def test_values_without_a_name_are_refused(change, sentence, maps, tmp_path):
    write_folders(tmp_path, [change(pixels.clip(0, 2)) for pixels in maps])
    with pytest.raises(ConfigError, match=sentence):
        read_labels(tmp_path)


def test_blurred_masks_are_refused(maps, tmp_path):
    blurred = np.arange(960).reshape(SIZE).astype(np.uint8)
    write_folders(tmp_path, [blurred] * 5)
    (tmp_path / 'classes.txt').unlink()
    with pytest.raises(ConfigError, match='have 255 values'):
        read_labels(tmp_path)


def test_faulty_maps_are_counted(maps, tmp_path):
    write_folders(tmp_path / 'data', [pixels.clip(0, 2) for pixels in maps])
    save_images(tmp_path / 'data/images/train', ['unlabelled'])
    save(tmp_path / 'data/masks/train/0.png', maps[0][:, :20])
    (tmp_path / 'data/masks/train/1.png').write_bytes(b'no image')
    save(tmp_path / 'data/masks/train/alone.png', maps[0])
    transparent = np.dstack([maps[0]] * 4)
    save(tmp_path / 'data/masks/val/3.png', transparent)
    data = read_labels(tmp_path / 'data')
    assert {fault.name: count for fault, count in data.faults.counts.items()} == {
        'image without labels': 1,
        'label file without an image': 1,
        'label file that cannot be read': 3,
    }
    assert {split: len(own) for split, own in data.splits.items()} == dict(train=1, val=1)


def test_palettes_of_different_maps_may_differ(maps, tmp_path):
    write_folders(tmp_path / 'data', maps)
    (tmp_path / 'data/classes.txt').unlink()
    colors = np.array([*COLORS, (9, 9, 9)], np.uint8)
    for number, pixels in enumerate(maps):
        split = 'train' if number < 3 else 'val'
        order = np.roll(np.arange(4), number)
        indices = np.argsort(order)[pixels.clip(0, 3)].astype(np.uint8)
        palette = colors[order].ravel().tolist()
        save(tmp_path / 'data/masks' / split / f'{number}.png', indices, palette)
    classes, loaded = load(read_labels(tmp_path / 'data'), tmp_path / 'out')
    assert classes == ('0', '9', '#0cc807', '#804080')
    for number, pixels in enumerate(maps):
        np.testing.assert_array_equal(
            loaded[str(number)], np.array([0, 2, 3, 1])[pixels.clip(0, 3)]
        )


@pytest.mark.parametrize(
    ('image', 'label'),
    [
        ('train/image/{}.png', 'train/label/{}.png'),
        ('images/{}_L.png', 'ground_truth/{}_L.png'),
        ('photos_segmentation/images/{}.png', 'photos_segmentation/masks/{}.png'),
        ('train/{}.png', 'trainannot/{}.png'),
        ('JPEGImages/{}.jpg', 'SegmentationClassPNG/{}.png'),
        ('a/{} ü.jpg', 'a/{} ü_mask.png'),
    ],
)
def test_maps_are_found(image, label, maps, tmp_path):
    # What labelme2voc writes too.
    if 'PNG' in label:
        (tmp_path / 'class_names.txt').write_text('background\nlow\nhigh')
        for number in range(5):
            save_images(tmp_path / 'SegmentationClassVisualization', [number])
            save(tmp_path / f'SegmentationObjectPNG/{number}.png', maps[number])
    for number, pixels in enumerate(maps):
        path = tmp_path / image.format(number)
        save_images(path.parent, [path.stem])
        path.with_suffix('.jpg').rename(path)
        save(tmp_path / label.format(number), pixels)
    # Kaggle's images of a competition.
    save_images(tmp_path / 'test', ['unlabelled'])
    data = read_labels(tmp_path)
    assert sum(map(len, data.splits.values())) == 5 and len(data.classes) == 3
    assert data.faults.counts.total() == 6


@pytest.mark.parametrize(
    ('names', 'values', 'classes'),
    [
        ({'classes.txt': 'cell'}, (0, 255), ('background', 'cell')),
        ({'classes.txt': 'a\nb'}, (0, 255), ('a', 'b')),
        ({'classes.txt': '1 a\n2 b'}, (1, 2), ('a', 'b')),
        ({'classes.txt': 'a\nb\nc'}, (0, 255), 'have a single class: a. .* name the value 255'),
        ({'classes.txt': 'a\nb\nc'}, (0, 1, 255), ('a', 'b', 'c')),
        ({'_classes.csv': '0, a\n1, b\n255, c'}, (0, 255), ('a', 'b', 'c')),
        ({'class_dict.csv': 'name,r,g,b\na,0,0,0\nb,255,255,255'}, (0, 255), ('a', 'b')),
        ({}, (0, 128, 255), 'can be a class or ignored'),
        ({}, (5, 255), 'have a single class: 5'),
        ({'class_dict.csv': '1,a,0,0,0\n2,b,9,9,9'}, (0, 9), "has the line '2,b,9,9,9'"),
        ({'a/classes.txt': 'a\nb', 'b/classes.txt': 'b\na'}, (0, 1), 'have different classes'),
    ],
)
def test_values_get_their_names_or_are_refused(names, values, classes, tmp_path):
    write_folders(tmp_path, [np.resize(np.array(values, np.uint8), SIZE)] * 5)
    (tmp_path / 'classes.txt').unlink()
    for name, text in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if isinstance(classes, tuple):
        assert read_labels(tmp_path).classes == classes
    else:
        with pytest.raises(ConfigError, match=classes):
            read_labels(tmp_path)


def test_boxes_cannot_become_maps(tmp_path):
    write_voc(tmp_path / 'data', plain_photos(2))
    with pytest.raises(ConfigError, match='has objects without masks'):
        write_seg_maps(read_labels(tmp_path / 'data'), tmp_path / 'out')
