import errno
import os

import pytest

from mmevit.utils.errors import UserError
from mmevit.utils.files import UNFINISHED, atomic_write


def write_package(folder):
    folder.mkdir()
    (folder / 'Manifest.json').write_text('new')


def test_file_is_complete_when_it_appears(tmp_path):
    destination = tmp_path / 'new' / 'out.txt'
    with atomic_write(destination) as path:
        path.write_text('complete')
        assert not destination.exists()
    assert destination.read_text() == 'complete'


@pytest.mark.parametrize('name', ['model.onnx', 'model.mlpackage'])
def test_a_directory_of_the_user_is_not_replaced(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'mine').write_text('mine')
    with pytest.raises(UserError, match='is an existing directory'), atomic_write(tmp_path / name):
        pytest.fail('the block ran')
    assert (tmp_path / name / 'mine').read_text() == 'mine'


def test_a_directory_in_the_place_of_a_second_file_is_not_replaced(tmp_path):
    (tmp_path / 'model.bin').mkdir()
    (tmp_path / 'model.bin/mine').write_text('mine')
    with (
        pytest.raises(UserError, match=r'model\.xml cannot be written'),
        atomic_write(tmp_path / 'model.xml') as path,
    ):
        path.write_text('new')
        path.with_suffix('.bin').write_text('new')
    assert (tmp_path / 'model.bin/mine').read_text() == 'mine'
    assert [path.name for path in tmp_path.iterdir()] == ['model.bin']


def test_a_core_ml_package_only_replaces_another_one(tmp_path):
    package = tmp_path / 'model.mlpackage'
    write_package(package)
    (package / 'old').write_text('old')
    with pytest.raises(UserError, match='cannot be written'), atomic_write(package) as path:
        path.write_text('a file')
    assert (package / 'old').exists()
    with atomic_write(package) as path:
        write_package(path)
    assert [path.name for path in package.iterdir()] == ['Manifest.json']
    assert [path.name for path in tmp_path.iterdir()] == ['model.mlpackage']


def test_a_core_ml_package_that_cannot_be_replaced_is_kept(tmp_path, monkeypatch):
    package = tmp_path / 'model.mlpackage'
    write_package(package)
    (package / 'old').write_text('old')

    def fail(source, destination):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(source), None, str(destination))

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(UserError, match='cannot be written'), atomic_write(package) as path:
        write_package(path)
    assert (package / 'old').read_text() == 'old'
    assert [path.name for path in tmp_path.iterdir()] == ['model.mlpackage']


@pytest.mark.parametrize(
    'error',
    [ConnectionResetError('lost'), FileNotFoundError(errno.ENOENT, 'no such file', 'input.png')],
    ids=['network', 'input'],
)
def test_other_errors_of_the_block_pass_through(error, tmp_path):
    with pytest.raises(type(error)) as caught, atomic_write(tmp_path / 'out.txt'):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def fail_with_full_disk(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ('name', 'write'),
    [
        ('out.txt', fail_with_full_disk),
        ('out.txt', lambda path: (path / 'no such folder').write_text('')),
        (f'{"long" * 100}.txt', lambda path: path.write_text('')),
        ('file/new/out.txt', None),
    ],
    ids=['full-disk', 'in-the-block', 'long-name', 'parent-is-a-file'],
)
def test_write_errors_become_user_errors(name, write, tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        pytest.raises(UserError, match=r'\.txt cannot be written \('),
        atomic_write(tmp_path / name) as path,
    ):
        write(path)
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    assert not list(tmp_path.glob(f'{UNFINISHED}*'))
