import pytest


@pytest.fixture
def train_json(root):
    return root / 'annotations/instances_train.json'


@pytest.fixture
def val_json(root):
    return root / 'annotations/instances_val.json'
