import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from editing import CLASSIFIER, DETECTOR, MASK_DETECTOR, edit
from mmengine.config import Config
from PIL import Image

from mmevit.cli.check_dataset import main


@pytest.fixture(scope='module')
def flat(tmp_path_factory):
    """Write configs without bases, which are read faster."""

    @functools.cache
    def dump(config):
        path = tmp_path_factory.mktemp('configs') / 'config.py'
        Config.fromfile(config).dump(path)
        return path

    return dump


@pytest.fixture
def check(root, flat, tmp_path):
    """Run the command in this process; returns its status and its rows."""

    def run(config, *arguments, data_root=root, options=()):
        splits = ('train', 'val', 'test') if data_root else ()
        roots = [f'{split}_dataloader.dataset.data_root={data_root}' for split in splits]
        out = tmp_path / 'faults.json'
        options = ['--cfg-options', *roots, *options] if roots or options else []
        arguments = [flat(config), *arguments, '--out', out, *options]
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments)])
        return end.value.code, json.loads(out.read_text())['rows']

    return run


def edit_annotations(root, change, name='instances_train.json'):
    edit(root / 'annotations' / name, change)


def test_data_without_faults_are_checked_once_with_status_0(digits, run_tool):
    roots = [f'{split}_dataloader.dataset.data_root={digits}' for split in ('train', 'val', 'test')]
    result = run_tool('tools/check_dataset.py', DETECTOR, '--cfg-options', *roots)
    assert result.returncode == 0
    rows = [line for line in result.stdout.splitlines() if line.startswith('|')][2:]
    assert rows == [
        f'| {data} images | ok |  | none |  |  |' for data in ('train, 16', 'val+test, 8')
    ]


def test_a_misspelt_argument_does_not_hide_the_other_data(check, digits):
    folder = digits / 'classification/val'
    options = ['train_dataloader.dataset.data_rot=x']
    status, rows = check(CLASSIFIER, data_root=folder, options=options)
    assert status == 1
    assert [(row['data'].split(',')[0], row['severity']) for row in rows] == [
        ('train', 'fatal'),
        ('val+test', 'note'),
    ]


def test_faults_are_counted_with_examples_and_status_1(check, root):
    (root / 'train/000003.png').write_bytes(b'corrupt')
    (root / 'train/000005.png').write_bytes(b'corrupt')
    Image.open(root / 'train/000006.png').convert('L').save(root / 'train/000006.png')
    (root / 'val/000002.png').unlink()
    edit_annotations(root, lambda content: content['annotations'][0].update(bbox=[1, 1, 0, 9]))
    status, rows = check(DETECTOR)
    assert status == 1
    found = {(row['data'].split(',')[0], row['fault']): row for row in rows}
    corrupt = found['train', 'corrupt image']
    assert corrupt['count'] == 2 and str(root / 'train/000003.png') in corrupt['examples']
    assert found['train', 'box or area of less than one pixel']['count'] == 1
    assert found['train', 'grayscale image']['severity'] == 'note'
    assert found['val+test', 'missing file']['severity'] == 'fatal'
    assert len(found) == 4


def test_notes_have_status_0(check, root):
    Image.open(root / 'train/000006.png').convert('L').save(root / 'train/000006.png')
    status, rows = check(DETECTOR, '--splits', 'train')
    assert status == 0
    assert [row['fault'] for row in rows] == ['grayscale image']


def test_a_truncated_annotation_file_is_reported_with_other_faults(check, root):
    path = root / 'annotations/instances_train.json'
    path.write_text(path.read_text()[:500])
    (root / 'val/000002.png').write_bytes(b'')
    status, rows = check(DETECTOR)
    assert status == 1
    assert [row['fault'] for row in rows] == [
        'annotation file that cannot be read',
        'empty file',
    ]
    assert 'is not valid JSON' in rows[0]['examples']


def test_missing_masks_are_counted_for_a_mask_rcnn(check, root):
    def remove_masks(content):
        for annotation in content['annotations'][:3]:
            del annotation['segmentation']

    edit_annotations(root, remove_masks)
    status, rows = check(DETECTOR, '--splits', 'train')
    assert (status, rows[0]['fault']) == (0, 'none')
    status, rows = check(MASK_DETECTOR, '--splits', 'train')
    assert status == 1
    assert [(row['count'], row['fault'], row['severity']) for row in rows] == [
        (3, 'annotation without segmentation, which the pipeline loads', 'fatal')
    ]


def test_annotations_that_are_all_crowds_are_reported(check, root):
    def make_crowds(content):
        for annotation in content['annotations']:
            annotation['iscrowd'] = 1

    edit_annotations(root, make_crowds)
    status, rows = check(DETECTOR, '--splits', 'train')
    assert status == 1
    assert (
        rows[0]['fault'] == 'file whose annotations are all iscrowd, left out or of other classes'
    )


def test_classes_that_differ_between_splits_are_reported(check):
    names = 'val_dataloader.dataset.metainfo.classes=[9,8,7,6,5,4,3,2,1,0]'
    status, rows = check(DETECTOR, options=[names])
    assert status == 1
    told = [row['examples'] for row in rows if row['fault'] == 'data sets with different classes']
    assert len(told) == 1 and "Class 0 is '0' in the train data" in told[0]


def test_class_folders_and_segmentation_maps_are_checked(check, digits, root):
    folder = root / 'classification'
    for name in '0123456789':
        (folder / name).mkdir(parents=True)
        shutil.copy(next((digits / 'classification/val' / name).iterdir()), folder / name)
    next((folder / '3').iterdir()).write_bytes(b'corrupt')
    status, rows = check(CLASSIFIER, '--splits', 'val', data_root=folder)
    assert status == 1
    assert [(row['count'], row['fault']) for row in rows if row['severity'] != 'note'] == [
        (1, 'corrupt image')
    ]
    # One of each class, so one of the last.
    options = ['model.head.num_classes=9']
    status, rows = check(CLASSIFIER, '--splits', 'val', data_root=folder, options=options)
    assert status == 1
    (label,) = (row for row in rows if row['severity'] == 'fatal')
    assert (label['count'], label['fault']) == (1, 'label that is not a class of the model')
    assert label['examples'].startswith('9 of ')


def convert(folder, mode):
    for path in folder.iterdir():
        Image.open(path).convert(mode).save(path)


def load_as(color_type, in_channels):
    return [
        f'train_dataloader.dataset.pipeline.0.color_type={color_type}',
        f'model.backbone.in_channels={in_channels}',
    ]


@pytest.mark.parametrize(
    ('mode', 'options', 'fault', 'status'),
    [
        ('RGBA', [], 'image with transparency', 0),
        ('RGBA', load_as('unchanged', 4), 'none', 0),
        ('RGB', load_as('unchanged', 4), 'image with another number of channels', 1),
        ('L', [], 'grayscale image', 0),
        ('L', load_as('grayscale', 1), 'none', 0),
        ('RGB', load_as('grayscale', 1), 'none', 0),
        ('L', load_as('color', 1), 'image with another number of channels', 1),
        ('L', load_as('unchanged', 3), 'image with another number of channels', 1),
    ],
)
def test_channels_are_compared_with_the_model(check, root, mode, options, fault, status):
    convert(root / 'train', mode)
    found, rows = check(DETECTOR, '--splits', 'train', options=options)
    assert found == status
    assert rows[0]['fault'].startswith(fault)
    assert fault == 'none' or rows[0]['count'] == 16


def test_images_of_16_bits_are_kept_if_the_pipeline_keeps_them(check, root):
    for path in (root / 'train').iterdir():
        grey = np.asarray(Image.open(path).convert('L')).astype(np.uint16) * 257
        Image.fromarray(grey).save(path)
    _, rows = check(DETECTOR, '--splits', 'train', options=load_as('unchanged', 1))
    assert [(row['fault'], row['consequence']) for row in rows] == [
        ('image of 16 bits', 'values up to 65535')
    ]


def test_all_segmentation_maps_are_checked(check, root):
    folder = root / 'segments/train'
    convert(folder, 'L')
    complete = np.asarray(Image.open(folder / '000001.png'))
    for name, pixels in {
        '000001': np.where(complete > 0, 11, 0).astype(np.uint8),
        '000002': np.stack([complete] * 3, 2),
        '000003': complete[:100],
    }.items():
        Image.fromarray(pixels).save(folder / f'{name}.png')
    (folder / '000004.png').write_bytes(b'corrupt')
    status, rows = check('configs/semantic-fpn_evit_m4_digits.py', '--splits', 'train')
    assert status == 1
    assert {row['fault']: row['examples'].removeprefix(f'{folder}/') for row in rows} == {
        'segmentation map with values beyond the classes': '000001.png: 11',
        'segmentation map of more than one channel': '000002.png: 3 channels',
        'segmentation map of another size than its image': (
            '000003.png: (100, 192), image: (192, 192)'
        ),
        'segmentation map that cannot be decoded': '000004.png',
    }
    assert {row['data'] for row in rows} == {'train, 16 images'}


def test_maps_of_another_transform_are_only_searched(check, root):
    config = 'configs/semantic-fpn_evit_m4_digits.py'
    steps = Config.fromfile(config).val_dataloader.dataset.pipeline
    index = [step.type for step in steps].index('LoadAnnotations')
    options = [f'val_dataloader.dataset.pipeline.{index}.type=LoadRGBMap']
    convert(root / 'segments/val', 'RGB')
    status, _ = check(config, '--splits', 'val', options=options)
    assert status == 0
    (root / 'segments/val/000001.png').unlink()
    status, rows = check(config, '--splits', 'val', options=options)
    assert (status, [row['fault'] for row in rows]) == (1, ['missing file'])


def test_a_file_without_annotations_is_reported(check, root):
    edit_annotations(root, lambda content: content.update(annotations=[]))
    status, rows = check(DETECTOR, '--splits', 'train')
    assert status == 1
    assert 'no annotations' in [row['examples'] for row in rows if row['severity'] == 'fault']


def add_unlabelled(root, ann_file):
    """Config that trains on labelled images and on those of another annotation file."""
    config = root.parent / 'semi_supervised.py'
    config.write_text(
        f'_base_ = {str(Path(DETECTOR).resolve())!r}\n'
        'labelled = _base_.train_dataloader.dataset\n'
        f'labelled.data_root = {str(root)!r}\n'
        f'unlabelled = dict(labelled, ann_file={ann_file!r})\n'
        "joined = dict(type='ConcatDataset', datasets=[labelled, unlabelled])\n"
        'train_dataloader = dict(dataset=dict(_delete_=True, **joined))\n'
    )
    return config


def test_unlabelled_images_of_semi_supervised_data_are_a_note(check, root):
    path = root / 'annotations/unlabelled.json'
    shutil.copy(root / 'annotations/instances_train.json', path)
    edit_annotations(root, lambda content: content.update(annotations=[]), path.name)
    config = add_unlabelled(root, f'annotations/{path.name}')
    status, rows = check(config, '--splits', 'train', data_root=None)
    assert status == 0
    assert [row['data'] for row in rows[:2]] == ['train, 16 images'] * 2
    assert [row['severity'] for row in rows if row['fault'] == 'file without annotations'] == [
        'note'
    ]
    edit_annotations(root, lambda content: content.update(annotations=[]))
    status, rows = check(config, '--splits', 'train', data_root=None)
    assert status == 1
    faults = [row['examples'] for row in rows if row['severity'] == 'fault']
    assert faults == ['no annotations', 'no annotations']


def test_an_unknown_ending_is_refused_before_the_data_are_read(refuse):
    assert 'a.txt must end in .md' in refuse('check_dataset', DETECTOR, '--out', 'a.txt')
