import shutil

import pytest


@pytest.fixture
def root(digits, tmp_path):
    """Scenes and their annotations, to be changed."""
    folder = tmp_path / 'digits'
    shutil.copytree(digits, folder, ignore=shutil.ignore_patterns('classification'))
    return folder


@pytest.fixture
def train_json(root):
    return root / 'annotations/instances_train.json'


@pytest.fixture
def val_json(root):
    return root / 'annotations/instances_val.json'
