import pytest

from mmevit.utils.errors import ConfigError
from mmevit.utils.inputs import name_inputs


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('vis/a.jpg', 'preds/clip/000000.png', 'b.jpg'):
        path = tmp_path / 'photos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / 'vis').symlink_to('photos/vis')
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links/a.jpg').symlink_to('../photos/vis/a.jpg')
    (tmp_path / 'photos/vis/link.jpg').symlink_to('../b.jpg')
    return tmp_path / 'photos'


@pytest.mark.parametrize(
    ('source', 'out_dir', 'folder'),
    [
        ('photos/vis', 'photos', 'photos/vis'),
        ('photos/vis/a.jpg', 'links/../photos', 'links/../photos/vis'),
        ('photos/preds/clip', 'photos', 'photos/preds'),
        ('links', 'photos', 'photos/vis'),
        ('photos/vis/link.jpg', 'photos', 'photos/vis'),
        ('photos/vis/a.jpg', '.', 'vis'),
    ],
)
def test_inputs_in_the_folders_of_predictions_are_refused(photos, source, out_dir, folder):
    with pytest.raises(ConfigError, match=f'in {folder}, .* Give another --out-dir') as caught:
        name_inputs([source], out_dir)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('out_dir', ['photos', 'other', 'photos/vis', None])
def test_other_inputs_next_to_predictions_are_accepted(photos, out_dir):
    source = 'photos/b.jpg' if out_dir == 'photos' else 'photos/vis/a.jpg'
    assert len(name_inputs([source], out_dir)) == 1
