import hashlib
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmevit.cli import prepare_digits as command
from mmevit.datasets import digits as module
from mmevit.datasets import prepare_digits
from mmevit.datasets.digits import MARKER, split_digits

SMALL = dict(num_train=3, num_val=2, image_size=64)


@pytest.fixture
def few_digits(monkeypatch):
    """Only some digits, which takes a tenth of the time."""

    def split_few(seed):
        return [[values[:50] for values in part] for part in split_digits(seed)]

    monkeypatch.setattr(module, 'split_digits', split_few)


@pytest.fixture
def root(tmp_path, few_digits):
    """A folder with digits."""
    prepare_digits(tmp_path / 'digits', **SMALL)
    return tmp_path / 'digits'


def digest(folder):
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    content = b''.join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)
    return hashlib.sha256(content).hexdigest()


def test_same_seed_gives_identical_bytes_and_another_seed_does_not(tmp_path, few_digits):
    for name, seed in (('a', 3), ('b', 3), ('c', 4)):
        prepare_digits(tmp_path / name, seed=seed, **SMALL)
    digests = [digest(tmp_path / name) for name in 'abc']
    assert digests[0] == digests[1] != digests[2]


def test_train_and_val_digits_are_disjoint_and_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    (train, train_labels), (val, val_labels) = split_digits(seed=0)
    as_set = {digit.tobytes() for digit in load_digits().images / 16}
    train_set, val_set = ({digit.tobytes() for digit in part} for part in (train, val))
    assert not train_set & val_set
    assert train_set | val_set == as_set
    assert len(train) + len(val) == len(train_labels) + len(val_labels) == 1797
    assert set(val_labels) == set(range(10))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pycocotools_reads_boxes_masks_and_areas_that_agree_with_the_segments(digits, split):
    coco = COCO(digits / f'annotations/instances_{split}.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list('0123456789')
    assert len(coco.getImgIds()) == len(list((digits / split).iterdir()))
    sizes, filled = [], []
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = np.asarray(Image.open(digits / split / image['file_name']).convert('RGB'))
        assert pixels.shape == (image['height'], image['width'], 3)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert len(annotations) >= 3
        segments = np.zeros(pixels.shape[:2], dtype=np.uint8)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert annotation['area'] == mask.sum() > 0
            # The mask is where the digit is: brighter than what is around it.
            box = np.s_[int(y) : int(y + height), int(x) : int(x + width)]
            around = pixels[box][~mask[box]]
            assert not len(around) or pixels[mask].mean() > around.mean() + 30
            sizes.append(height)
            filled.append(mask[box].mean())
            segments[mask] = annotation['category_id']
        written = np.asarray(Image.open(digits / 'segments' / split / image['file_name']))
        assert (written == segments).all()
    assert max(sizes) > 1.5 * min(sizes)
    assert 0.4 < np.mean(filled) < 0.8  # strokes, not boxes
    assert len({annotation['id'] for annotation in coco.anns.values()} - {0}) == len(coco.anns)


def test_class_folders_hold_every_digit_of_their_split(digits):
    for split, count in (('train', 1437), ('val', 360)):
        folders = sorted((digits / 'classification' / split).iterdir())
        assert [folder.name for folder in folders] == list('0123456789')
        assert sum(len(list(folder.iterdir())) for folder in folders) == count


def test_digits_are_not_overwritten_without_force(tmp_path, few_digits):
    root = tmp_path / 'digits'
    root.mkdir()
    prepare_digits(root, **SMALL)  # an empty folder is no loss
    before = digest(root)
    with pytest.raises(SystemExit, match='--force'):
        command.main([str(root)])
    assert digest(root) == before
    prepare_digits(root, force=True, seed=1, **SMALL)
    assert digest(root) != before
    names = sorted(path.name for path in root.iterdir())
    assert names == [MARKER, 'annotations', 'classification', 'segments', 'train', 'val']
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def add_foreign_image(root):
    (root / 'train/mine.png').write_text('mine')


def add_link(root):
    (root / 'val/mine').symlink_to(root / 'train')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (add_foreign_image, r'contains train/mine\.png, which'),
        (add_link, 'contains val/mine, which'),
        (lambda root: (root / MARKER).unlink(), f'{MARKER} is missing'),
    ],
    ids=['image', 'link', 'no-marker'],
)
def test_digits_with_other_files_are_not_replaced_even_with_force(root, change, message):
    change(root)
    before = digest(root)
    with pytest.raises(FileExistsError, match=message):
        prepare_digits(root, force=True, **SMALL)
    assert digest(root) == before


def test_another_coco_data_set_is_not_replaced_even_with_force(tmp_path):
    annotations = tmp_path / 'coco/annotations/instances_train.json'
    annotations.parent.mkdir(parents=True)
    annotations.write_text('{}')
    with pytest.raises(FileExistsError, match=r'was not written by prepare_digits\.py'):
        prepare_digits(tmp_path / 'coco', force=True, **SMALL)
    assert annotations.read_text() == '{}'


def test_other_files_are_not_overwritten_even_with_force(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    for root, message in ((tmp_path, 'was not written by'), (tmp_path / 'thesis.tex', 'is a file')):
        with pytest.raises(FileExistsError, match=message):
            prepare_digits(root, force=True, **SMALL)
    assert (tmp_path / 'thesis.tex').read_text() == 'mine'


def test_the_old_digits_are_kept_if_they_cannot_be_replaced(root, monkeypatch):
    before = digest(root)
    rename = Path.rename

    def fail_for_the_new_ones(path, target):
        if path.name == 'new':
            raise OSError('disk on fire')
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', fail_for_the_new_ones)
    with pytest.raises(OSError, match='disk on fire'):
        prepare_digits(root, force=True, seed=1, **SMALL)
    assert digest(root) == before
    assert [path.name for path in root.parent.iterdir()] == ['digits']


@pytest.mark.parametrize(
    ('interrupt', 'reason'),
    [
        (lambda: signal.default_int_handler(signal.SIGINT, None), 'Interrupted'),
        (lambda: signal.raise_signal(signal.SIGTERM), 'Terminated'),
    ],
)
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, few_digits, interrupt, reason):
    def draw_and_interrupt(rng, *args):
        if list(tmp_path.rglob('000003.png')):
            interrupt()
        return draw_scene(rng, *args)

    draw_scene = module.draw_scene
    monkeypatch.setattr(module, 'draw_scene', draw_and_interrupt)
    with pytest.raises(SystemExit, match=f'error: {reason}; nothing was written'):
        command.main([str(tmp_path / 'digits')])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (dict(image_size=32), 'at least 64'),
        (dict(num_train=0), 'at least 1'),
        (dict(num_val=-1), 'at least 1'),
    ],
)
def test_too_small_or_too_few_scenes_are_refused(tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        prepare_digits(tmp_path / 'digits', **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_created_is_reported_without_a_traceback(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match='^error: '):
        command.main([str(tmp_path / 'file/digits')])
