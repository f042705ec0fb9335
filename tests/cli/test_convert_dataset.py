import json

import pytest
from making_labels import plain_photos, write_coco, write_labelme, write_voc, write_xml, write_yolo


def read_tables(output):
    rows = [line.strip('| ').split(' | ') for line in output.splitlines() if line[:2] == '| ']
    return [[cell.strip() for cell in row] for row in rows]


def test_files_are_written_and_summarised(run_tool, tmp_path):
    root, out = tmp_path / 'in ü', tmp_path / 'out'
    write_voc(root, plain_photos(5))
    write_xml(root / 'Annotations/1.xml', [('cell', (70, 8, 90, 40)), ('big cell', (0, 0, 9, 9))])
    (root / 'Annotations/2.xml').unlink()
    result = run_tool(
        'tools/convert_dataset.py', root, out, '--to', 'coco', '--val-fraction', '0.25'
    )
    assert result.returncode == 0, result.stdout
    tables = read_tables(result.stdout)
    assert tables[:2] == [['train', 'val'], ['images', '3', '1']]
    assert [row[0] for row in tables[2:4]] == ['objects: big cell', 'objects: cell']
    assert sum(int(number) for row in tables[2:4] for number in row[1:]) == 4
    assert sorted(row[:3] for row in tables[5:]) == [
        ['1', 'box of less than one pixel, or outside its image', 'left out'],
        ['1', 'image without labels', 'left out'],
    ]
    assert 'Annotations/1.xml: cell (70.0, 8.0, 90.0, 40.0)' in result.stdout
    for split in ('train', 'val'):
        path = out / f'instances_{split}.json'
        assert f'{split}: ann_file={str(path)!r}' in result.stdout
        content = json.loads(path.read_text())
        assert all((root / image['file_name']).is_file() for image in content['images'])
    assert sorted(path.name for path in out.iterdir()) == [
        'instances_train.json',
        'instances_val.json',
    ]


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(refuse, tmp_path):
    write_voc(tmp_path / 'in', plain_photos())
    path = tmp_path / 'out/instances_test.json'
    path.parent.mkdir()
    path.write_text('of other data')
    sentence = refuse('convert_dataset', tmp_path / 'in', tmp_path / 'out')
    assert 'out is not empty. Choose another folder.' in sentence
    assert list(path.parent.iterdir()) == [path] and path.read_text() == 'of other data'


@pytest.mark.parametrize(
    ('writers', 'arguments', 'sentence'),
    [
        ([write_coco], ['in/out'], 'in/out is inside the data'),
        ([write_coco], ['in'], 'in is inside the data'),
        ([], ['out'], 'The folder in is missing'),
        ([write_voc, write_yolo], ['out'], 'the formats voc and yolo. Choose one with --format.'),
        ([write_voc], ['out', '--format', 'yolo'], 'contains no labels in the format yolo'),
        ([write_voc], ['out', '--val-fraction', '1'], 'is 1.0, not between 0 and 1'),
        ([write_voc], ['out', '--val-fraction', 'x'], 'invalid float value'),
        ([write_labelme], ['out', '--to', 'voc'], "invalid choice: 'voc'"),
    ],
)
def test_refusals(writers, arguments, sentence, refuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for write in writers:
        write(tmp_path / 'in', plain_photos())
    before = sorted(tmp_path.rglob('*'))
    assert sentence in refuse('convert_dataset', 'in', *arguments)
    assert sorted(tmp_path.rglob('*')) == before


def test_images_without_labels_are_refused(refuse, tmp_path):
    write_voc(tmp_path, plain_photos())
    for path in tmp_path.glob('Annotations/*'):
        path.unlink()
    assert 'contains no labels in the formats coco, voc, yolo, labelme' in refuse(
        'convert_dataset', tmp_path, tmp_path.parent / 'out'
    )
