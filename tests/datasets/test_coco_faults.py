import contextlib
import json
import math

import msgspec
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations

from mmevit.datasets import coco_faults as faults
from mmevit.datasets.coco import CocoFile, CocoMaskFile
from mmevit.datasets.coco_faults import find_coco_faults
from mmevit.datasets.faults import LEFT_OUT


def make_content(**changes):
    """Two images, three annotations, two categories; changed are the fields of the first."""
    content = dict(
        images=[
            dict(id=number, file_name=f'{number}.png', height=60, width=80) for number in (1, 2)
        ],
        annotations=[
            dict(id=number, image_id=image, category_id=category, bbox=[10, 10, 20, 30], area=600)
            for number, image, category in ((1, 1, 1), (2, 2, 2), (3, 2, 1))
        ],
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )
    for part, fields in changes.items():
        content[part][0].update(fields)
    return content


def find_faults(content, classes=('cat', 'dog'), layout=CocoFile, only_polygons=False):
    return find_coco_faults(msgspec.convert(content, layout), classes, only_polygons)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ('changes', 'kind'),
    [
        (dict(images=dict(id=2)), faults.SAME_IMAGE_ID),
        (dict(annotations=dict(id=2)), faults.SAME_ANNOTATION_ID),
        (dict(categories=dict(id=2)), faults.SAME_CATEGORY),
        (dict(categories=dict(name='dog')), faults.SAME_CATEGORY),
        (dict(images=dict(width=0)), faults.EMPTY_IMAGE),
        (dict(images=dict(width=float('nan'))), faults.EMPTY_IMAGE),
        (dict(annotations=dict(image_id=7)), faults.UNKNOWN_IMAGE),
        (dict(annotations=dict(category_id=7)), faults.UNKNOWN_CATEGORY),
        (dict(annotations=dict(bbox=[1, 2, INF, 4])), faults.INFINITE_BOX),
        (dict(annotations=dict(area=INF)), faults.INFINITE_BOX),
        (dict(annotations=dict(bbox=[NAN, 2, 3, 4])), faults.NAN_BOX),
        (dict(annotations=dict(bbox=[1, 2, 3, NAN])), faults.NAN_BOX),
        (dict(annotations=dict(bbox=[1, 2, 0, 4])), faults.EMPTY_BOX),
        (dict(annotations=dict(bbox=[1, 2, 3, -4])), faults.EMPTY_BOX),
        (dict(annotations=dict(area=0)), faults.EMPTY_BOX),
        (dict(annotations=dict(bbox=[-30, 2, 20, 20])), faults.BOX_OUTSIDE),
        (dict(annotations=dict(bbox=[2, 61, 20, 20])), faults.BOX_OUTSIDE),
        (dict(annotations=dict(bbox=[-10, 2, 20, 20])), faults.BOX_ACROSS),
    ],
)
def test_faults_are_counted_by_type(changes, kind):
    found = find_faults(make_content(**changes))
    assert found.counts[kind] == 1
    others = {other for other in found.counts if other.severity != 'note'} - {kind}
    # What else it entails: another id leaves a gap, another name a class without a category.
    entailed = {faults.UNKNOWN_CATEGORY, faults.UNKNOWN_IMAGE, faults.MISSING_CLASS}
    assert not others - entailed - {faults.OTHER_ORDER}


def test_a_file_without_faults_has_none():
    assert not find_faults(make_content()).counts


@pytest.mark.parametrize(
    ('classes', 'kind'),
    [
        (('dog', 'cat'), faults.OTHER_ORDER),
        (('cow', 'cat', 'dog'), faults.OTHER_ORDER),
        (('cat', 'dog', 'cow'), faults.MISSING_CLASS),
        (('cat',), faults.OTHER_CATEGORY),
    ],
)
def test_classes_in_another_order_differ_from_missing_ones(classes, kind):
    assert kind in find_faults(make_content(), classes).counts


@pytest.fixture
def load(tmp_path):
    """Load annotations with mmdet."""

    def load(content, classes=('cat', 'dog')):
        (tmp_path / 'a.json').write_text(json.dumps(content))
        return CocoDataset(
            ann_file=str(tmp_path / 'a.json'),
            data_prefix=dict(img=''),
            metainfo=dict(classes=classes),
            pipeline=[],
        )

    return load


def list_labels(dataset):
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [instance['bbox_label'] for info in infos for instance in info['instances']]


def test_duplicate_ids_of_unused_categories_are_ignored(load):
    content = make_content()
    content['categories'] += [dict(id=7, name='cow'), dict(id=7, name='ox')]
    content['annotations'][1]['category_id'] = 7
    found = find_faults(content, ('cat',))
    assert not found.of('fatal') and not found.of('fault')
    assert found.examples[faults.OTHER_CATEGORY] == ['dog', 'cow', 'ox']
    assert list_labels(load(content, ('cat',))) == [0, 0]


@pytest.mark.parametrize('is_first', [True, False])
def test_a_used_category_with_a_duplicate_id_is_fatal(load, is_first):
    """Because mmdet takes the annotations of both categories for the used one."""
    content = make_content()
    content['categories'].insert(0 if is_first else 2, dict(id=1, name='tiger'))
    content['annotations'][0]['note'] = 'a tiger'
    found = find_faults(content)
    assert found.examples[faults.SAME_CATEGORY] == ['id 1']
    assert list_labels(load(content)) == [0, 1, 0]


def test_a_used_category_that_is_listed_twice_is_fatal(load):
    """Because mmdet numbers it twice, and the classes after it wrongly."""
    content = make_content()
    content['categories'].insert(1, dict(id=1, name='cat'))
    found = find_faults(content)
    assert found.examples[faults.SAME_CATEGORY] == ['id 1', 'cat']
    assert list_labels(load(content)) == [1, 2, 1]


@pytest.mark.parametrize(
    'box',
    [
        [NAN, 2, 3, 4],
        [1, NAN, 3, 4],
        [1, 2, NAN, 4],
        [1, 2, 3, NAN],
        [1, 2, 0, 4],
        [1, 2, -3, 4],
        [-30, 2, 20, 20],
        [2, 61, 20, 20],
        [10, 10, 20, 30],
        [-10, -10, 200, 200],
    ],
    ids=str,
)
def test_mmdet_leaves_out_what_is_reported_as_left_out(box, load):
    content = make_content(annotations=dict(bbox=box))
    found = find_faults(content)
    is_left_out = not load(content).get_data_info(0)['instances']
    assert is_left_out == bool(found.of('fault'))
    assert all(fault.consequence == LEFT_OUT for fault in found.of('fault'))


SQUARE = [[10, 10, 30, 10, 30, 40, 10, 40]]


@pytest.mark.parametrize(
    ('segmentation', 'kind'),
    [
        (dict(size=[80, 60], counts='a'), faults.OTHER_MASK_SIZE),
        (dict(size=[60, 80], counts='a'), None),
        (SQUARE, None),
        ([], faults.NO_MASK),
        (None, faults.NO_MASK),
    ],
)
def test_masks_are_only_checked_if_they_are_read(segmentation, kind):
    content = make_content()
    for annotation in content['annotations']:
        annotation['segmentation'] = SQUARE
    content['annotations'][0]['segmentation'] = segmentation
    assert not find_faults(content).counts
    found = find_faults(content, layout=CocoMaskFile)
    assert found.counts == ({kind: 1} if kind else {})
    assert found.of('fatal') == ([kind] if kind else [])


@pytest.mark.parametrize('only_polygons', [False, True])
@pytest.mark.parametrize('iscrowd', [0, 1])
def test_run_length_masks_are_left_out_where_mmdet_leaves_them_out(iscrowd, only_polygons, load):
    content = make_content()
    for annotation in content['annotations']:
        annotation['segmentation'] = SQUARE
    run_lengths = dict(size=[60, 80], counts=[600, 4200])
    content['annotations'][0].update(segmentation=run_lengths, iscrowd=iscrowd)
    found = find_faults(content, layout=CocoMaskFile, only_polygons=only_polygons)
    info = load(content).get_data_info(0)
    info['ori_shape'] = 60, 80
    loaded = LoadAnnotations(with_mask=True, poly2mask=not only_polygons)(info)
    is_left_out = faults.RUN_LENGTHS in found.counts
    assert is_left_out == (only_polygons and not iscrowd)
    assert loaded['gt_ignore_flags'][0] == (is_left_out or iscrowd)


def test_annotations_without_segmentation_are_counted_for_masks():
    found = find_faults(make_content(), layout=CocoMaskFile)
    assert found.counts == {faults.NO_MASK: 3}


@pytest.mark.parametrize('change', [dict(iscrowd=1), dict(bbox=[1, 2, 0, 0]), dict(ignore=1)])
def test_files_without_usable_annotations_are_reported(change):
    content = make_content()
    for annotation in content['annotations'][:2]:
        annotation.update(change)
    found = find_faults(content)
    assert faults.NOTHING_TO_LEARN not in found.counts
    assert found.counts[faults.NO_EXAMPLES] == 1
    content['annotations'][2].update(change)
    found = find_faults(content)
    assert found.examples[faults.NOTHING_TO_LEARN] == ['3 annotations']


@pytest.mark.parametrize(
    'fields',
    [
        dict(bbox=[1, 2, INF, 4]),
        dict(segmentation=None),
        dict(segmentation=dict(size=[1, 2], counts='a')),
    ],
)
def test_annotations_of_unused_categories_have_no_faults(fields):
    content = make_content()
    for annotation in content['annotations']:
        annotation['segmentation'] = SQUARE
    content['annotations'][1].update(fields)  # a dog
    found = find_faults(content, ('cat',), CocoMaskFile)
    assert not found.of('fatal') and not found.of('fault')


@pytest.mark.parametrize(
    ('fields', 'is_read'),
    [
        (dict(), True),
        (dict(category_id=2), True),
        (dict(ignore=1), False),
        (dict(image_id=7, bbox=[]), False),
    ],
)
@pytest.mark.parametrize('lost', ['bbox', 'area'])
def test_a_box_is_required_where_mmdet_reads_it(fields, is_read, lost, load):
    content = make_content(annotations=fields)
    content['annotations'][0].pop(lost)
    found = find_faults(content)
    assert found.of('fatal') == ([faults.NO_BOX] if is_read else [])
    with pytest.raises(KeyError) if is_read else contextlib.nullcontext():
        load(content)


def test_an_infinite_box_is_clipped_by_mmdet():
    from mmdet.datasets.transforms import Resize
    from mmdet.structures.bbox import HorizontalBoxes

    boxes = HorizontalBoxes(torch.tensor([[1.0, 2.0, INF, 6.0]]))
    image = np.zeros((60, 80, 3), np.uint8)
    resized = Resize((160, 120))(dict(img=image, gt_bboxes=boxes))
    assert resized['gt_bboxes'].tensor.tolist() == [[2, 4, 160, 12]]
    found = find_faults(make_content(annotations=dict(bbox=[1, 2, INF, 4])))
    assert found.of('fault') == [faults.INFINITE_BOX]
    assert 'clipped' in faults.INFINITE_BOX.consequence
