import numpy as np
import pytest
from making_datasets import random_image

from mmevit.datasets import split_class_folders
from mmevit.utils.errors import ConfigError


@pytest.fixture
def make(tmp_path):
    """Make empty files by name, which is all that listing them needs."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def animals(make):
    cats = [f'cat/{index}.jpg' for index in range(10)]
    dogs = [f'a dog/deeper down/{index} of 5.PNG' for index in range(5)]
    return make(*cats, *dogs, 'cat/notes.txt', '.cache/1.jpg', 'readme.jpg'), cats, dogs


def test_each_class_is_split_in_proportion_and_nothing_is_lost(animals):
    root, cats, dogs = animals
    classes, train, val = split_class_folders(root)
    assert classes == ('a dog', 'cat')
    assert sorted(train + val) == sorted(
        [(path, 1) for path in cats] + [(path, 0) for path in dogs]
    )
    assert [label for _, label in val] == [0, 1, 1]


@pytest.mark.parametrize(('fraction', 'held_out'), [(0.5, 5 + 2), (0.01, 1 + 1), (0.99, 9 + 4)])
def test_each_class_has_at_least_one_image_on_each_side(animals, fraction, held_out):
    _, train, val = split_class_folders(animals[0], fraction)
    assert len(val) == held_out and len(train) == 15 - held_out


def test_the_split_depends_on_the_seed_only(animals):
    root, _, _ = animals
    assert split_class_folders(root) == split_class_folders(root)
    assert split_class_folders(root) != split_class_folders(root, seed=1)


def test_new_classes_do_not_change_the_split_of_others(animals, make):
    root, _, _ = animals
    before = split_class_folders(root)
    make('bird/1.jpg', 'bird/2.jpg')
    after = split_class_folders(root)
    assert [path for path, _ in before[2]] == [p for p, _ in after[2] if 'bird' not in p]


@pytest.mark.parametrize(
    ('train', 'val'),
    [
        *(('train', name) for name in ('val', 'valid', 'validation', 'test')),
        *(('Train', 'Test'), ('Training', 'Testing'), ('training_set', 'test_set')),
        ('seg_train/seg_train', 'seg_test/seg_test'),
    ],
)
def test_folders_for_validation_are_used(make, val, train):
    root = make(f'{train}/a/1.jpg', f'{train}/b/2.jpg', f'{val}/b/3.jpg')
    assert split_class_folders(root) == (
        ('a', 'b'),
        [(f'{train}/a/1.jpg', 0), (f'{train}/b/2.jpg', 1)],
        [(f'{val}/b/3.jpg', 1)],
    )


def test_folders_without_classes_next_to_splits_are_left_out(make, log):
    names = [f'seg_train/{name}/{index}.jpg' for name in 'ab' for index in range(2)]
    root = make(*names, 'seg_test/a/1.jpg', 'seg_pred/2.jpg')
    assert split_class_folders(root)[2] == [('seg_test/a/1.jpg', 0)]
    assert 'seg_pred in ' in log.read_text()


def test_unlabelled_test_images_are_not_for_validation(make, log):
    root = make(*(f'train/{name}/{index}.jpg' for name in 'ab' for index in range(2)), 'test/1.jpg')
    _, train, val = split_class_folders(root)
    assert len(train) == len(val) == 2
    assert 'test in ' in log.read_text()


def test_names_with_the_word_of_a_split_may_be_classes(make):
    root = make('train station/1.jpg', 'train station/2.jpg', 'test tube/1.jpg', 'test tube/2.jpg')
    assert split_class_folders(root)[0] == ('test tube', 'train station')
    make('training shoes/red/1.jpg', 'training shoes/red/2.jpg')
    assert len(split_class_folders(root)[0]) == 3


def test_validation_comes_before_test_and_exact_names_before_others(make):
    root = make('train/a/1.jpg', 'train/b/2.jpg', 'my val/a/4.jpg', 'test/a/4.jpg', 'valid/a/3.jpg')
    assert split_class_folders(root)[2] == [('valid/a/3.jpg', 0)]


def test_a_training_folder_without_validation_folder_is_split(make):
    root = make(*(f'train/{name}/{index}.jpg' for name in 'ab' for index in range(2)))
    classes, train, val = split_class_folders(root)
    assert classes == ('a', 'b') and len(train) == len(val) == 2
    assert all(path.startswith('train/') for path, _ in train + val)


def test_train_may_be_the_name_of_a_class(make):
    root = make('train/1.jpg', 'train/2.jpg', 'val/1.jpg', 'val/2.jpg')
    assert split_class_folders(root)[0] == ('train', 'val')


def test_hidden_files_and_those_of_macos_are_left_out(make, log):
    root = make('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg', '__MACOSX/a/1.jpg')
    make('a/._1.jpg', 'a/.DS_Store', 'b/.ipynb_checkpoints/1-checkpoint.jpg')
    classes, train, val = split_class_folders(root)
    assert classes == ('a', 'b') and len(train + val) == 4
    assert 'left out' not in log.read_text()


def test_frames_of_a_video_are_held_out_together(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / name).mkdir()
        for series in range(4):
            picture = random_image(rng, (64, 65))
            for number in range(5):
                picture.save(tmp_path / name / f'{series}_frame_{number}.png')
    for seed in range(3):
        _, train, val = split_class_folders(tmp_path, 0.25, seed)
        assert len(train) == 30 and len({path.split('_')[0] for path, _ in val}) == 2


def test_links_to_folders_are_not_followed(make):
    root = make('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'b/2.jpg')
    (root / 'a/up').symlink_to(root)
    _, train, val = split_class_folders(root)
    assert len(train + val) == 4


def test_files_that_are_left_out_are_counted(make, log):
    split_class_folders(make('a/1.jpg', 'a/2.jpg', 'a/3.heic', 'b/1.jpg', 'b/2.jpg', 'b/4.gif'))
    assert '2 files are left out, such as ' in log.read_text()


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (['a/1.jpg', 'a/2.jpg'], '1 training and 1 validation classes'),
        (['1.jpg'], '0 training'),
        (['a/1.jpg', 'a/2.jpg', 'b/1.jpg'], 'class b has only one image'),
        (['a/1.jpg', 'a/2.jpg', 'b/1.txt'], 'no images in b'),
        (['train/a/1.jpg', 'train/b/1.jpg', 'val/c/1.jpg'], 'classes c, which are missing in'),
        (['train/a/1.jpg', 'val/a/1.jpg'], '1 training and 1 validation'),
    ],
)
def test_unusable_folders_are_refused(make, names, words):
    with pytest.raises(ConfigError, match=words):
        split_class_folders(make(*names))


def test_a_missing_folder_and_an_invalid_fraction_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='missing'):
        split_class_folders(tmp_path / 'nothing')
    with pytest.raises(ConfigError, match='between 0 and 1'):
        split_class_folders(tmp_path, 1.0)
