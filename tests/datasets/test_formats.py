"""Against the readers of mmdet, pycocotools and supervision, and what the test has written."""

import base64
import io
import json
import random
import shutil
from pathlib import Path

import mmcv
import numpy as np
import pytest
import yaml
from editing import edit
from making_datasets import ORIENTATION, random_image
from making_labels import (
    CLASSES,
    WRITERS,
    Photo,
    draw_photos,
    make_coco,
    make_shape,
    plain_photos,
    save_image,
    write_coco,
    write_labelme,
    write_shapes,
    write_voc,
    write_xml,
    write_yolo,
)
from mmdet.datasets import CocoDataset, XMLDataset
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from mmevit.datasets.formats import complete_splits, read_labels
from mmevit.datasets.formats import write_coco as save_coco
from mmevit.datasets.formats.splits import hold_out
from mmevit.utils.errors import ConfigError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(80, 60), ratio_range=(0.5, 2.0)),
    dict(type='RandomCrop', crop_size=(48, 48)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Pad', size=(64, 64)),
    dict(type='PackDetInputs'),
]


def load(path):
    """Images by name, with height, width and the sorted objects, as pycocotools reads them."""
    coco = COCO(path)
    names = {category['id']: category['name'] for category in coco.cats.values()}
    images = {}
    for image in coco.imgs.values():
        boxes = [(names[a['category_id']], *a['bbox']) for a in coco.imgToAnns[image['id']]]
        name = Path(image['file_name']).name
        images[name] = (image['height'], image['width'], sorted(boxes))
    return list(coco.cats.values()), images


def expect(photos):
    boxes = {p.name: [(n, x, y, r - x, b - y) for n, (x, y, r, b) in p.boxes] for p in photos}
    return {p.name: (p.image.height, p.image.width, sorted(boxes[p.name])) for p in photos}


def load_batches(root, ann_file):
    dataset = dict(type=CocoDataset, data_root=str(root), data_prefix=dict(img=''))
    dataset |= dict(ann_file=str(ann_file), metainfo=dict(classes=CLASSES), pipeline=PIPELINE)
    sampler = dict(type='DefaultSampler', shuffle=True)
    loader = dict(dataset=dataset, batch_size=2, num_workers=0, sampler=sampler)
    built = Runner.build_dataloader(loader | dict(collate_fn=dict(type='pseudo_collate')), seed=1)
    np.random.seed(2)
    random.seed(2)
    for batch in built:
        for pixels, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
            objects = sample.gt_instances
            yield pixels.numpy(), objects.bboxes.numpy(), objects.labels.tolist()


def test_every_format_gives_the_same_coco_files_and_training_batches(tmp_path):
    init_default_scope('mmdet')
    photos, batches = draw_photos(), {}
    for name, write in WRITERS.items():
        root = tmp_path / name
        write(root, photos)
        data = complete_splits(read_labels(root), 0.2)
        assert data.classes == CLASSES and not data.faults.counts, name
        paths = save_coco(data, tmp_path / f'{name} out')
        assert list(paths) == ['train', 'val', 'test']
        for split, path in paths.items():
            categories, images = load(path)
            assert [category['name'] for category in categories] == list(CLASSES)
            expected = expect(photos[split])
            assert images.keys() == expected.keys()
            for key, (height, width, boxes) in expected.items():
                assert images[key][:2] == (height, width)
                for box, wanted in zip(images[key][2], boxes, strict=True):
                    assert box[0] == wanted[0]
                    assert box[1:] == pytest.approx(wanted[1:], abs=0.002), name
        batches[name] = list(load_batches(root, paths['train']))
    first = batches.pop('coco')
    assert len(first) == 5
    for name, others in batches.items():
        for (pixels, boxes, labels), other in zip(first, others, strict=True):
            assert (pixels == other[0]).all() and labels == other[2], name
            np.testing.assert_allclose(boxes, other[1], atol=0.01)


def list_state(root):
    return [(p, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob('*'))]


def clip(boxes):
    """What is left of boxes in BCCD's images, and how many were changed or left out."""
    boxes = np.array(boxes, float).reshape(-1, 4)
    clipped = np.clip(boxes, 0, [640, 480, 640, 480])
    kept = (clipped[:, 2:] - clipped[:, :2] >= 1).all(1)
    return sorted(clipped[kept].tolist()), len(boxes) - kept.sum()


def test_digits_are_read_beside_segments_of_the_same_names(digits):
    data = read_labels(digits)
    for split, images in data.splits.items():
        content = json.loads((digits / f'annotations/instances_{split}.json').read_text())
        names = [f'{split}/{image["file_name"]}' for image in content['images']]
        assert [image.path for image in images] == names
        assert sum(len(image.shapes) for image in images) == len(content['annotations'])


def test_boxes_of_bccd_are_those_of_mmdet_and_supervision(bccd, tmp_path):
    from supervision import DetectionDataset

    before = list_state(bccd)
    data = complete_splits(read_labels(bccd), 0.2)
    save_coco(data, tmp_path)
    images = {image.path: image for own in data.splits.values() for image in own}
    boxes = {path: sorted(list(shape.box) for shape in images[path].shapes) for path in images}
    dataset = DetectionDataset.from_pascal_voc(str(bccd / 'JPEGImages'), str(bccd / 'Annotations'))
    theirs = {Path(path): found.xyxy for path, found in dataset.annotations.items()}
    assert len(theirs) == 364
    for path, found in theirs.items():
        assert clip(found)[0] == boxes[f'JPEGImages/{path.name}']
    assert sum(map(len, theirs.values())) == 4888 == sum(map(len, boxes.values())) + 2
    assert sum(clip(found)[1] for found in theirs.values()) == 2
    for split, number in dict(train=205, val=87, test=72).items():
        theirs = XMLDataset(
            ann_file=f'ImageSets/Main/{split}.txt',
            data_root=str(bccd),
            data_prefix=dict(sub_data_root=''),
            metainfo=dict(classes=data.classes),
            pipeline=[],
            test_mode=True,
        )
        assert len(theirs) == len(data.splits[split]) == number
        for image, entry in zip(data.splits[split], theirs, strict=True):
            assert entry['img_path'].endswith(image.path)
            kept, _ = clip([item['bbox'] for item in entry['instances']])
            assert kept == boxes[image.path]
            labels = sorted(data.classes[item['bbox_label']] for item in entry['instances'])
            assert len(kept) < len(labels) or labels == sorted(s.label for s in image.shapes)
    assert list_state(bccd) == before


TRIANGLE, HOUSE = [10.5, 5, 30, 8, 20, 33.25], [40, 40, 60, 40, 60, 20, 50.5, 11, 40, 20]
DIAMOND = [30, 10, 40, 20, 30, 30, 20, 20]
MASK = np.zeros((48, 64), np.uint8)
MASK[10:21, 30:43] = np.random.default_rng(0).integers(0, 2, (11, 13))
MASK[10, 30] = MASK[20, 42] = 1


def encode(mask, compressed=True):
    if compressed:
        code = coco_masks.encode(np.asfortranarray(mask))
        return dict(size=list(mask.shape), counts=code['counts'].decode())
    changes = np.flatnonzero(np.diff(np.r_[0, mask.ravel('F')]))
    return dict(size=list(mask.shape), counts=np.diff(np.r_[0, changes, mask.size]).tolist())


def pairs(polygon):
    return np.reshape(polygon, (-1, 2)).tolist()


def write_yolo_masks(root, photos):
    write_yolo(root, photos)
    lines = [
        ' '.join(map(str, (np.reshape(p, (-1, 2)) / (64, 48)).ravel())) for p in (TRIANGLE, HOUSE)
    ]
    (root / 'labels/1.txt').write_text(''.join(f'0 {line}\n' for line in lines))
    return [[TRIANGLE], [HOUSE]]


def write_labelme_masks(root, photos):
    write_labelme(root, photos)
    png = io.BytesIO()
    Image.fromarray(MASK[10:21, 30:43] * 255).save(png, 'png')
    shapes = [
        make_shape('cell', pairs(TRIANGLE), group_id=7),
        make_shape('dot', pairs(TRIANGLE), group_id=7),
        make_shape('cell', pairs(HOUSE), group_id=7),
        make_shape('cell', pairs(DIAMOND), 'oriented_rectangle'),
        make_shape('cell', pairs(DIAMOND), 'rotation', direction=0.8),
        make_shape('cell', [[30, 20], [30, 30]], 'circle'),
        make_shape(
            'cell', [[30, 10], [42, 20]], 'mask', mask=base64.b64encode(png.getvalue()).decode()
        ),
    ]
    write_shapes(root / '1.json', shapes)
    return [[TRIANGLE, HOUSE], [TRIANGLE], [DIAMOND], [DIAMOND], 'circle', MASK]


def write_coco_masks(root, photos):
    masks = [[TRIANGLE, HOUSE], encode(MASK), encode(MASK, compressed=False), None]

    def change(content):
        (first,) = [a for a in content['annotations'] if a['image_id'] == 70]
        content['annotations'].remove(first)
        for number, mask in enumerate(masks, start=10):
            content['annotations'].append({**first, 'id': number, 'segmentation': mask or []})
        # What is missing is computed.
        for annotation in content['annotations'][-4:-1]:
            del annotation['bbox']

    write_coco(root, photos)
    edit(root / 'annotations/instances_default.json', change)
    return [masks[0], MASK, MASK, None]


@pytest.mark.parametrize('write', [write_yolo_masks, write_labelme_masks, write_coco_masks])
def test_masks_are_kept_as_they_are_and_measured(write, tmp_path):
    expected = write(tmp_path / 'in', plain_photos())
    data = complete_splits(read_labels(tmp_path / 'in'), 0.01)
    paths = save_coco(data, tmp_path)
    coco = next(c for c in map(COCO, paths.values()) if '1.png' in str(c.imgs.values()))
    (image,) = (i for i in coco.imgs.values() if i['file_name'].endswith('1.png'))
    annotations = coco.imgToAnns[image['id']]
    for annotation, wanted in zip(annotations, expected, strict=True):
        if wanted is None:
            assert 'segmentation' not in annotation
            continue
        mask = coco.annToMask(annotation)
        assert annotation['area'] == mask.sum()
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        left, top, width, height = annotation['bbox']
        assert np.abs([left - columns[0], top - rows[0]]).max() <= 1.5
        assert np.abs([left + width - columns[-1] - 1, top + height - rows[-1] - 1]).max() <= 1.5
        if isinstance(wanted, np.ndarray):
            assert (mask == wanted).all()
        elif wanted == 'circle':
            y, x = np.mgrid[:48, :64] + 0.5
            disk = np.hypot(x - 30, y - 20) <= 10
            assert (mask != disk).sum() < 20
        else:
            assert len(annotation['segmentation']) == len(wanted)
            for polygon, other in zip(annotation['segmentation'], wanted, strict=True):
                assert polygon == pytest.approx(other, abs=1e-9)


BOX = ('cell', (8, 8, 40, 40))
NO_IMAGE = 'label file without an image'
MISSING = 'listed image that is not in the data'
NO_LABELS = 'image without labels'
UNCLEAR = 'labels that fit several images, or image with several labels'
TWICE = 'image that is listed twice in a split'
CORRUPT = 'image whose size cannot be read'
BROKEN_LABELS = 'label file that cannot be read'
BACKGROUND = 'image without objects'
SHARED = 'image that is also in a later split'
OTHER_SIZE = 'image of another size than in its labels'
NAN = 'box or mask with NaN or infinity'
EMPTY = 'box of less than one pixel, or outside its image'
ACROSS = 'box partly outside its image'
FEW_POINTS = 'polygon of fewer than three points'
NO_AREA = 'point, line or unsupported shape'


def xml(*boxes, **options):
    """Change the labels of the first image."""
    return lambda root: write_xml(root / 'Annotations/1.xml', boxes, **options)


def shapes(*shapes):
    return lambda root: write_shapes(root / '1.json', shapes)


def write(name, content):
    def change(root):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def chain(*changes):
    return lambda root: [change(root) for change in changes]


def remove(name):
    return lambda root: (root / name).unlink()


def copy(name, target):
    def change(root):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, root / target)

    return change


def coco(change):
    return lambda root: edit(root / 'annotations/instances_default.json', change)


def annotate(**fields):
    """Change the first annotation."""
    return coco(lambda content: content['annotations'][0].update(fields))


def list_image(**fields):
    return coco(lambda content: content['images'].append(content['images'][0] | fields))


# Changes of three images with an object each: what is counted, and how many images and objects
# remain.
REPAIRS = [
    ('voc', xml(BOX, ('cell', (70, 8, 90, 40))), {EMPTY: 1}, 3, 3),
    ('voc', xml(BOX, ('cell', (9, 9, 9, 9))), {EMPTY: 1}, 3, 3),
    ('voc', xml(BOX, ('cell', (30, 9, 20, 40))), {EMPTY: 1}, 3, 3),
    ('voc', xml(BOX, ('cell', (9, 9, float('nan'), 30))), {NAN: 1}, 3, 3),
    ('voc', xml(BOX, ('cell', (9, 9, 80, 30))), {ACROSS: 1}, 3, 4),
    ('voc', xml(BOX, ('cell', (-1, -1, 64, 48))), {}, 3, 4),
    ('voc', xml(), {BACKGROUND: 1}, 3, 2),
    ('voc', xml(BOX, size=(128, 96)), {OTHER_SIZE: 1}, 3, 3),
    ('voc', xml(BOX, size=(0, 0)), {}, 3, 3),
    ('voc', xml(('', (8, 8, 40, 40))), {BROKEN_LABELS: 1}, 2, 2),
    ('voc', write('Annotations/1.xml', '<annotation><object>'), {BROKEN_LABELS: 1}, 2, 2),
    ('voc', remove('Annotations/1.xml'), {NO_LABELS: 1}, 2, 2),
    ('voc', remove('JPEGImages/1.png'), {NO_IMAGE: 1}, 2, 2),
    ('voc', copy('JPEGImages/1.png', 'JPEGImages/1.bmp'), {UNCLEAR: 1}, 2, 2),
    ('voc', copy('Annotations/1.xml', 'Annotations/more/1.xml'), {NO_IMAGE: 1}, 3, 3),
    ('voc', write('JPEGImages/1.png', 'corrupt'), {CORRUPT: 1}, 2, 2),
    (
        'voc',
        write('ImageSets/Main/train.txt', '1\n2\n2\n4\n'),
        {MISSING: 1, 'image of no split': 1},
        2,
        2,
    ),
    ('voc', write('.hidden/1.png', 'x'), {}, 3, 3),
    ('yolo', remove('labels/1.txt'), {BACKGROUND: 1}, 3, 2),
    ('yolo', write('labels/1.txt', '0 .5 .5 .5\n'), {BROKEN_LABELS: 1}, 2, 2),
    ('yolo', write('labels/1.txt', '0 a b c d\n'), {BROKEN_LABELS: 1}, 2, 2),
    ('yolo', write('labels/1.txt', '0 20 20 30 30\n'), {BROKEN_LABELS: 1}, 2, 2),
    ('yolo', write('labels/1.txt', '0 .5 .5 nan .5\n0 .1 .1 .2 .2'), {NAN: 1}, 3, 3),
    ('yolo', write('labels/1.txt', '0 .1 .1 .2 nan .2 .3\n'), {NAN: 1, BACKGROUND: 1}, 3, 2),
    ('yolo', write('labels/1.txt', b'\xef\xbb\xbf0 .1 .1 .2 .2\r\n\r\n'), {}, 3, 3),
    ('yolo', write('labels/4.txt', '0 .1 .1 .2 .2'), {NO_IMAGE: 1}, 3, 3),
    ('yolo', copy('labels/1.txt', 'labels_old/1.txt'), {NO_IMAGE: 1}, 3, 3),
    ('yolo', write('README.roboflow.txt', 'About'), {}, 3, 3),
    ('labelme', remove('1.json'), {NO_LABELS: 1}, 2, 2),
    ('labelme', write('1.json', '{"shapes": [{'), {BROKEN_LABELS: 1}, 2, 2),
    ('labelme', write('classes.json', '["cell"]'), {NO_IMAGE: 1}, 3, 3),
    (
        'labelme',
        shapes(make_shape('cell', pairs(TRIANGLE[:4]))),
        {FEW_POINTS: 1, BACKGROUND: 1},
        3,
        2,
    ),
    ('labelme', shapes(make_shape('cell', [[3, 4]], 'point')), {NO_AREA: 1, BACKGROUND: 1}, 3, 2),
    (
        'labelme',
        shapes(make_shape('cell', pairs(TRIANGLE), 'x')),
        {NO_AREA: 1, BACKGROUND: 1},
        3,
        2,
    ),
    (
        'coco',
        annotate(image_id=9),
        {'annotation of an image that is not listed': 1, BACKGROUND: 1},
        3,
        2,
    ),
    (
        'coco',
        annotate(category_id=9),
        {'annotation of a category that is not listed': 1, BACKGROUND: 1},
        3,
        2,
    ),
    ('coco', annotate(segmentation=[TRIANGLE, [1, 2, 3, 4]]), {FEW_POINTS: 1}, 3, 3),
    ('coco', annotate(segmentation=[[1, 2, 3, 4]]), {FEW_POINTS: 1, BACKGROUND: 1}, 3, 2),
    (
        'coco',
        annotate(segmentation=encode(MASK[1:])),
        {'mask of another size than its image': 1, BACKGROUND: 1},
        3,
        2,
    ),
    ('coco', annotate(bbox=[1, 2, float('inf'), 4]), {NAN: 1, BACKGROUND: 1}, 3, 2),
    ('coco', list_image(id=4, file_name='4.png'), {MISSING: 1}, 3, 3),
    ('coco', list_image(id=4), {TWICE: 1}, 3, 3),
    ('coco', write('images/1.png', 'corrupt'), {CORRUPT: 1}, 2, 2),
    ('coco', list_image(), {}, 3, 3),
    ('coco', copy('images/1.png', 'images/5.png'), {NO_LABELS: 1}, 3, 3),
    (
        'coco',
        copy('annotations/instances_default.json', 'annotations/instances_2.json'),
        {TWICE: 3},
        3,
        3,
    ),
    (
        'coco',
        coco(lambda content: [image.update(width=None) for image in content['images']]),
        {},
        3,
        3,
    ),
]


def count(data):
    return {fault.name: number for fault, number in data.faults.counts.items()}


@pytest.mark.parametrize(('name', 'change', 'faults', 'images', 'objects'), REPAIRS)
def test_repairs_are_counted(name, change, faults, images, objects, tmp_path):
    WRITERS[name](tmp_path, plain_photos())
    change(tmp_path)
    data = read_labels(tmp_path)
    own = [image for images in data.splits.values() for image in images]
    assert (count(data), len(own), sum(len(i.shapes) for i in own)) == (faults, images, objects)
    assert data.classes == ('cell',)


REFUSALS = [
    ('voc', shutil.rmtree, 'The folder .* is missing'),
    ('voc', lambda root: shutil.rmtree(root / 'JPEGImages'), 'contains no images'),
    (
        'voc',
        lambda root: write_yolo(root, plain_photos()),
        'in the formats voc and yolo. Choose one with --format',
    ),
    (
        'voc',
        chain(*(write(f'Annotations/{n}.xml', '') for n in (1, 2, 3))),
        'no labelled object in the format voc: 3 x label file that',
    ),
    (
        'yolo',
        write('labels/2.txt', '0 .5 .5 .5 .5\n1 .5 .5 .5 .5'),
        r'labels/2.txt, line 2, has the class 1, but names has the classes 0\.',
    ),
    ('yolo', write('labels/2.txt', '0.5 .5 .5 .5 .5'), 'line 1, has the class 0.5'),
    ('yolo', write('data.yaml', 'names: [a, "b\n'), 'data.yaml is not valid YAML'),
    ('yolo', write('data.yaml', 'names: [a, a]'), r"are \['a', 'a'\]. Write a list of different"),
    ('yolo', write('data.yaml', 'names: cell'), 'are cell. Write a list'),
    ('yolo', write('data.yaml', 'names: {cell: 0}'), r"are \{'cell': '0'\}. Write a list"),
    (
        'yolo',
        write('data.yaml', 'names: [cell]\ntrain: /other/images'),
        "has '/other/images' as training images",
    ),
    (
        'yolo',
        chain(remove('data.yaml'), *(write(f'x/{n}.yaml', 'names: [cell]') for n in (1, 2))),
        'several files with class names: x/1.yaml, x/2.yaml',
    ),
    (
        'coco',
        write('annotations/instances_train.json', '{"images": [{"id": 1'),
        'instances_train.json is not valid JSON',
    ),
    ('coco', list_image(file_name='4.png'), 'several images with the id 70. Give each'),
    (
        'coco',
        annotate(segmentation=dict(counts=[1])),
        'not a valid COCO annotation file: .*field .size.',
    ),
    (
        'coco',
        coco(lambda content: content['categories'].append(dict(id=4, name='dot'))),
        'several categories with the id 4. Give',
    ),
    (
        'coco',
        lambda root: [write_coco(root / 'x', draw_photos(dict(train=2)))],
        'has annotation files of splits, and others with 3 images',
    ),
]


@pytest.mark.parametrize(('name', 'change', 'sentence'), REFUSALS)
def test_refusals_say_what_to_do(name, change, sentence, tmp_path):
    WRITERS[name](tmp_path / 'in', plain_photos())
    change(tmp_path / 'in')
    with pytest.raises(ConfigError, match=sentence):
        read_labels(tmp_path / 'in')


def by_path(data):
    """The labels of each image by path."""
    images = [image for images in data.splits.values() for image in images]
    assert len(images) == len({image.path for image in images})
    return {image.path: [shape.label for shape in image.shapes] for image in images}


def write_all(root, files):
    """Write files by name: text, or an image for None."""
    for name, content in files.items():
        if content is None:
            save_image(Photo(Path(name).name, Image.new('RGB', (64, 48))), (root / name).parent)
        else:
            write(name, content)(root)


def yolo(number):
    return f'{number} .5 .5 .5 .5'


def coco_of(*names, label=0):
    photos = [
        Photo(name, Image.new('L', (64, 48)), [('abc'[label], (8, 8, 40, 40))]) for name in names
    ]
    return json.dumps(make_coco(photos, 'abc'))


XML = """<annotation><object><name>cell</name><bndbox><xmin>9</xmin><ymin>9</ymin>
<xmax>41</xmax><ymax>41</ymax></bndbox></object></annotation>"""
ABC = {'data.yaml': 'names: [a, b, c]'}
LAYOUTS = {
    'the same names in subfolders': (
        ABC
        | {f'images/{x}/1.png': None for x in 'ab'}
        | {'labels/a/1.txt': yolo(0), 'labels/b/1.txt': yolo(1)},
        {'images/a/1.png': ['a'], 'images/b/1.png': ['b']},
        {},
    ),
    'labels that are sorted before, of a missing image': (
        ABC
        | {'train/images/1.png': None, 'train/labels/1.txt': yolo(0)}
        | {'test/images/2.png': None, 'test/labels/1.txt': yolo(1), 'test/labels/2.txt': yolo(2)},
        {'train/images/1.png': ['a'], 'test/images/2.png': ['c']},
        {NO_IMAGE: 1},
    ),
    'labels of a missing image with the name of one without labels': (
        ABC
        | {f'images/{name}.png': None for name in ('a/2', 'b/1', 'b/2')}
        | {f'labels/{name}.txt': yolo(0) for name in ('a/1', 'a/2')},
        {'images/a/2.png': ['a'], 'images/b/1.png': [], 'images/b/2.png': []},
        {NO_IMAGE: 1, BACKGROUND: 2},
    ),
    'a name that stays ambiguous': (
        ABC
        | {'images/1.png': None, 'images/1.bmp': None, 'images/2.png': None}
        | {'labels/1.txt': yolo(0), 'labels/2.txt': yolo(1)},
        {'images/2.png': ['b']},
        {UNCLEAR: 1},
    ),
    'two folders of labels': (
        ABC
        | {'photos/1.png': None, 'photos/2.png': None}
        | {'new/1.txt': yolo(0), 'old/1.txt': yolo(1), 'new/2.txt': yolo(2)},
        {'photos/2.png': ['c']},
        {UNCLEAR: 2},
    ),
    'labels next to the images of a data set with a stray image': (
        ABC
        | {f'photos/{name}': None for name in ('1.png', 'more/2.png', 'more/3.png')}
        | {f'photos/{n}.txt': yolo(n - 1) for n in (1, 2, 3)},
        {'photos/1.png': ['a'], 'photos/more/2.png': ['b'], 'photos/more/3.png': ['c']},
        {},
    ),
    'labels that are named like other text files': (
        ABC
        | {f'{name}.png': None for name in ('license_plate_1', 'test.1', 'classes')}
        | {'license_plate_1.txt': yolo(0), 'test.1.txt': yolo(1), 'classes.txt': yolo(2)},
        {'license_plate_1.png': ['a'], 'test.1.png': ['b'], 'classes.png': ['c']},
        {},
    ),
    'accents as macOS writes them': (
        {'images/caf\u0065\u0301 1.png': None, 'a.json': coco_of('caf\u00e9 1.png')},
        {'images/caf\u0065\u0301 1.png': ['a']},
        {},
    ),
    'the same names in the folders of splits': (
        {f'{split}/1.png': None for split in ('train', 'val')}
        | {'annotations/train.json': coco_of('1.png')}
        | {'annotations/val.json': coco_of('1.png', label=1)},
        {'train/1.png': ['a'], 'val/1.png': ['b']},
        {},
    ),
    'splits in one folder of images': (
        {f'train/{n}.png': None for n in (1, 2)}
        | {'train.json': coco_of('1.png'), 'val.json': coco_of('2.png', label=1)},
        {'train/1.png': ['a'], 'train/2.png': ['b']},
        {},
    ),
    'names with folders': (
        {f'images/{x}/1.png': None for x in 'ab'}
        | {'x.json': coco_of('a/1.png', 'C:\\\\me\\b\\1.png', 'c/1.png')},
        {'images/a/1.png': ['a'], 'images/b/1.png': ['a']},
        {MISSING: 1},
    ),
    'absolute names of a folder that is now elsewhere': (
        {'images/1.png': None, 'x.json': coco_of('/home/me/photos/1.png')},
        {'images/1.png': ['a']},
        {},
    ),
    'an image that is missing in its folder but not in another': (
        {f'{name}.png': None for name in ('a/2', 'b/1')}
        | {'x.json': coco_of('a/1.png', 'a/2.png')},
        {'a/2.png': ['a']},
        {MISSING: 1, NO_LABELS: 1},
    ),
    'ambiguous names in COCO': (
        {f'{name}.png': None for name in ('a/1', 'b/1', 'b/2', 'b/3')}
        | {'x.json': coco_of('1.png', 'b/2.png', '/me/b/2.png', '3.png')},
        {'b/3.png': ['a']},
        {UNCLEAR: 3},
    ),
    'files of other tasks': (
        {'train/1.png': None, 'train/2.png': None, 'val.json': coco_of('1.png')}
        | {
            f'{name}.json': coco_of('2.png', label=1)
            for name in ('instances_train', 'person_keypoints_train', 'stuff_val')
        },
        {'train/1.png': ['a'], 'train/2.png': ['b']},
        {},
    ),
    'several folders with lists': (
        {
            f'{folder}/{name}': content
            for folder, label in (('VOC2007', 'a'), ('VOC2012', 'b'))
            for name, content in {
                'JPEGImages/1.png': None,
                'Annotations/1.xml': XML.replace('cell', label),
                'ImageSets/Main/train.txt': '1',
            }.items()
        },
        {'VOC2007/JPEGImages/1.png': ['a'], 'VOC2012/JPEGImages/1.png': ['b']},
        {},
    ),
    'masks with the names of the images': (
        {'JPEGImages/1.png': None, 'SegmentationClass/1.png': None, 'Annotations/1.xml': XML}
        | {'ImageSets/Main/train.txt': '1'},
        {'JPEGImages/1.png': ['cell']},
        {},
    ),
    'masks next to the labels': (
        ABC
        | {'photos/1.png': None, 'labels/1.png': None, 'photos/2.png': None, 'labels/2.png': None}
        | {'labels/1.txt': yolo(0)},
        {'photos/1.png': ['a'], 'photos/2.png': []},
        {BACKGROUND: 1, NO_LABELS: 2},
    ),
    'a list of paths': (
        {'data.yaml': 'names: {0: a, 7: no}\npath: ../elsewhere\ntrain: train.txt\nval:\ntest: [x]'}
        | {f'images/{n}.png': None for n in (1, 2)}
        | {'train.txt': './images/1.png\n', 'labels/1.txt': yolo(7), 'labels/2.txt': yolo(0)},
        {'images/1.png': ['no']},
        {MISSING: 1, 'image of no split': 1},
    ),
    'keypoints after the boxes': (
        {'data.yaml': 'names: [a]\nkpt_shape: [1, 3]', '1.png': None}
        | {'1.txt': yolo(0) + ' .1 .1 2'},
        {'1.png': ['a']},
        {},
    ),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_labels_belong_to_their_images(layout, tmp_path):
    files, labels, faults = LAYOUTS[layout]
    write_all(tmp_path, files)
    data = read_labels(tmp_path)
    assert (by_path(data), count(data)) == (labels, faults)


def test_links_are_followed_once(tmp_path):
    write_all(tmp_path / 'x', ABC | {'1.png': None, '1.txt': yolo(0)})
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/link').symlink_to(tmp_path / 'x')
    (tmp_path / 'x/loop').symlink_to(tmp_path / 'data')
    assert by_path(read_labels(tmp_path / 'data')) == {'link/1.png': ['a']}


def test_folders_of_a_data_yaml_may_be_links(tmp_path):
    write_all(tmp_path, {'disk/1.png': None, 'data/labels/1.txt': yolo(0)})
    write('data/data.yaml', 'names: [a, b, c]\ntrain: images')(tmp_path)
    (tmp_path / 'data/images').symlink_to(tmp_path / 'disk')
    data = read_labels(tmp_path / 'data')
    assert by_path(data) == {'images/1.png': ['a']}


def test_rotated_photos_have_the_size_that_is_loaded(tmp_path):
    write_yolo(tmp_path, plain_photos(1))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (path,) = tmp_path.glob('images/*.png')
    Image.open(path).save(path, exif=exif)
    (image,) = read_labels(tmp_path).splits['']
    assert (image.height, image.width) == mmcv.imread(path).shape[:2] == (64, 48)
    assert image.shapes[0].box == pytest.approx((6, 8 / 48 * 64, 30, 40 / 48 * 64))


def test_difficult_objects_are_crowds(tmp_path):
    write_voc(tmp_path / 'in', plain_photos(2))
    write_xml(tmp_path / 'in/Annotations/1.xml', [BOX], difficult=1)
    data = complete_splits(read_labels(tmp_path / 'in'), 0.5)
    for path in save_coco(data, tmp_path).values():
        content = json.loads(path.read_text())
        is_first = content['images'][0]['file_name'].endswith('1.png')
        assert [a['iscrowd'] for a in content['annotations']] == [int(is_first)]
    assert count(data) == {'object marked as crowd or difficult': 1}


def test_data_whose_objects_are_all_ignored_are_refused(tmp_path):
    write_coco(tmp_path / 'in', plain_photos())
    coco(lambda content: [a.update(iscrowd=1) for a in content['annotations']])(tmp_path / 'in')
    data = complete_splits(read_labels(tmp_path / 'in'), 0.5)
    with pytest.raises(ConfigError, match='has only objects marked as crowd or difficult'):
        save_coco(data, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_a_category_above_the_classes_is_kept_if_it_is_used_or_above_itself(tmp_path):
    photos = plain_photos()
    write_coco(tmp_path, photos)

    def change(content):
        content['categories'] = [
            dict(id=1, name='thing', supercategory='none'),
            dict(id=4, name='cell', supercategory='thing'),
            dict(id=2, name='person', supercategory='person'),
        ]

    coco(change)(tmp_path)
    assert read_labels(tmp_path).classes == ('cell', 'person')
    annotate(category_id=1)(tmp_path)
    assert read_labels(tmp_path).classes == ('thing', 'cell', 'person')


def test_a_format_can_be_chosen(tmp_path):
    write_voc(tmp_path, plain_photos(1))
    write_yolo(tmp_path, plain_photos(2), 'JPEGImages')
    for name, images in dict(voc=1, yolo=2).items():
        assert len(by_path(read_labels(tmp_path, name))) == images
    with pytest.raises(ConfigError, match='no labels in the format coco'):
        read_labels(tmp_path, 'coco')
    shutil.rmtree(tmp_path / 'Annotations')
    (tmp_path / 'data.yaml').unlink()
    with pytest.raises(ConfigError, match='such as JPEGImages/1.txt, but no class names. For YOLO'):
        read_labels(tmp_path)
    for path in tmp_path.rglob('*.txt'):
        path.unlink()
    assert read_labels(tmp_path) is None


def test_images_that_splits_share_are_only_in_the_last(tmp_path):
    photos = draw_photos(dict(train=4, val=2, test=1))
    write_yolo(tmp_path, photos)
    for photo in photos['val']:
        copy(f'images/val/{photo.name}', f'images/train/copy of {photo.name}')(tmp_path)
    content = yaml.safe_load((tmp_path / 'data.yaml').read_text())
    content['val'] = ['images/val', 'images/test']
    (tmp_path / 'data.yaml').write_text(yaml.safe_dump(content))
    data = complete_splits(read_labels(tmp_path), 0.2)
    assert {split: len(images) for split, images in data.splits.items()} == dict(
        train=4, val=2, test=1
    )
    assert count(data)[SHARED] == 3
    content['val'] = content['train']
    (tmp_path / 'data.yaml').write_text(yaml.safe_dump(content))
    with pytest.raises(
        ConfigError, match='has 0 labelled images for training that are in no other'
    ):
        complete_splits(read_labels(tmp_path), 0.2)


@pytest.mark.parametrize('name', ['my_test_annotations.json', 'test/x.json', 'annotations.json'])
def test_a_single_split_is_used_for_training_and_validation(name, tmp_path):
    names = [f'{n}.png' for n in range(5)]
    write_all(tmp_path, {name: coco_of(*names)} | {f'images/{name}': None for name in names})
    data = complete_splits(read_labels(tmp_path), 0.2)
    assert {split: len(images) for split, images in data.splits.items()} == dict(train=4, val=1)


def test_images_next_to_a_folder_for_testing_are_for_training(tmp_path):
    names = {'photos/1': 0, 'photos/2': 1, 'test/3': 2}
    files = {f'{name}.png': None for name in names}
    write_all(tmp_path, ABC | files | {f'{name}.txt': yolo(n) for name, n in names.items()})
    splits = read_labels(tmp_path).splits
    assert {split: len(images) for split, images in splits.items()} == dict(train=2, test=1)
    write_all(tmp_path, {'train/4.png': None, 'train/4.txt': yolo(0)})
    data = read_labels(tmp_path)
    assert {split: len(images) for split, images in data.splits.items()} == dict(train=1, test=1)
    assert count(data) == {'image of no split': 2}


@pytest.mark.parametrize('settings', ['', '\ntrain: images/train\ntest: images/test'])
def test_a_split_without_label_files_is_unlabelled_and_not_background(settings, tmp_path):
    files = {'data.yaml': f'names: [a]{settings}', 'labels/train/1.txt': yolo(0)}
    images = {f'images/{name}.png': None for name in ('train/1', 'train/2', 'test/3', 'test/4')}
    write_all(tmp_path, files | images)
    data = read_labels(tmp_path)
    assert {split: len(images) for split, images in data.splits.items()} == dict(train=2)
    assert count(data) == {BACKGROUND: 1, NO_LABELS: 2}


@pytest.mark.parametrize('names', ['a\nb', 'a', 'a\nb\nc', 'b\na', 'a\nc'])
def test_class_lists_of_several_folders_must_agree(names, tmp_path):
    files = {f'{x}/1.png': None for x in 'xy'} | {f'{x}/1.txt': yolo(0) for x in 'xy'}
    write_all(tmp_path, files | {'x/classes.txt': 'a\nb\n', 'y/classes.txt': names})
    if names in ('b\na', 'a\nc'):
        with pytest.raises(ConfigError, match='y/classes.txt have different classes.*Renumber'):
            read_labels(tmp_path)
    else:
        data = read_labels(tmp_path)
        assert data.classes == tuple(max(names, 'a\nb', key=len).split())
        assert by_path(data) == {'x/1.png': ['a'], 'y/1.png': ['a']}


def draw_series(folder, count, seed, name='frame'):
    """Draw a picture that moves slowly."""
    rng = np.random.default_rng(seed)
    picture = random_image(rng, (200, 201))
    for number in range(count):
        frame = picture.crop((number // 4, 0, 160 + number // 4, 160))
        folder.mkdir(parents=True, exist_ok=True)
        frame.save(folder / f'{name}_{number:03}.png')
    return [f'{folder.name}/{name}_{number:03}.png' for number in range(count)]


def test_images_that_follow_each_other_are_held_out_together(tmp_path):
    series = [draw_series(tmp_path / f'{n}', 6, n) for n in range(8)]
    images = [path for own in series for path in own]
    for seed in range(5):
        train, val = hold_out(tmp_path, images, 0.3, seed)
        assert sorted(train + val) == images
        assert len(val) == 12 and all(len({path in val for path in own}) == 1 for own in series)
    assert hold_out(tmp_path, images, 0.3, 1) == hold_out(tmp_path, images, 0.3, 1)
    assert hold_out(tmp_path, images, 0.3, 1) != hold_out(tmp_path, images, 0.3, 2)
    # A longer series is cut in few places.
    train, val = hold_out(tmp_path, images, 0.05, 0)
    assert len(val) == 2 and len({path.split('/')[0] for path in val}) == 1


def test_images_that_look_different_are_held_out_one_by_one(tmp_path):
    images = []
    for number in range(12):
        images += draw_series(tmp_path / 'x', 1, number, f'{number}_frame')
    _, val = hold_out(tmp_path, images, 0.5, 0)
    numbers = sorted(int(path[2:].split('_')[0]) for path in val)
    assert len(val) == 6 and numbers != list(range(numbers[0], numbers[0] + 6))


def test_copies_and_augmented_images_are_held_out_together(tmp_path):
    images = []
    for number in range(6):
        images += draw_series(tmp_path / 'x', 1, number, f'{number}_a_jpg.rf.{number}a')
        path = tmp_path / images[-1]
        shutil.copy(path, tmp_path / 'x' / f'copy {100 * number}.png')
        flipped = path.with_name(f'{number}_a_jpg.rf.{number}b_000.png')
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped)
        images += [f'x/copy {100 * number}.png', f'x/{flipped.name}']
    for seed in range(4):
        _, val = hold_out(tmp_path, images, 0.5, seed)
        groups = [number // 3 for number, path in enumerate(images) if path in val]
        assert len(val) == 9 and all(groups.count(group) == 3 for group in groups)


@pytest.mark.parametrize(
    ('count', 'fraction', 'held_out'),
    [(5, 0.2, 1), (5, 0.01, 1), (5, 0.99, 4), (10, 0.25, 2), (11, 0.25, 3), (2, 0.5, 1)],
)
def test_at_least_one_image_is_on_each_side(count, fraction, held_out, tmp_path):
    write_voc(tmp_path, plain_photos(count))
    # Truncated images have a size, but no content.
    for path in sorted(tmp_path.glob('JPEGImages/*'))[1:]:
        random_image(np.random.default_rng(0), (60, 61)).resize((64, 48)).save(path, 'jpeg')
        path.write_bytes(path.read_bytes()[:1000])
    data = complete_splits(read_labels(tmp_path), fraction)
    assert [len(data.splits[split]) for split in ('train', 'val')] == [count - held_out, held_out]


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 20, float('nan')])
def test_fractions_that_leave_nothing_are_refused(fraction, tmp_path):
    write_voc(tmp_path, plain_photos())
    with pytest.raises(ConfigError, match='not between 0 and 1'):
        complete_splits(read_labels(tmp_path), fraction)


def test_one_image_is_refused(tmp_path):
    write_voc(tmp_path, plain_photos(1))
    with pytest.raises(ConfigError, match='has 1 labelled images for training'):
        complete_splits(read_labels(tmp_path), 0.2)
