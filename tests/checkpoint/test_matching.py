"""Weights that training starts from, as the commands check them."""

import pytest
import torch
from making import as_released, make_classifier, make_timm
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmevit.checkpoint import convert_names
from mmevit.checkpoint.matching import drop_mismatched_weights
from mmevit.models import EfficientViT
from mmevit.utils.errors import CheckpointError


def make_runner(model, folder, resume=False):
    runner = Runner(
        model=model,
        work_dir=str(folder),
        custom_hooks=[dict(type='TrainingWeightsHook')],
        resume=resume,
        # A log of its own for each test.
        experiment_name=folder.name,
    )
    runner._train_loop = EpochBasedTrainLoop(runner, DataLoader([0]), max_epochs=1)
    return runner


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp('released') / 'released.pth'
    torch.save(dict(model=as_released(make_timm('m0'))), path)
    return f'evit://{path}', convert_names(make_timm('m0').state_dict(), 'mmevit')


def test_training_for_other_classes_starts_from_a_new_head_with_a_warning(
    released, tmp_path, capsys
):
    path, expected = released
    model = make_classifier('m0', num_classes=5)
    before = model.head.head.linear.weight.clone()
    make_runner(model, tmp_path).load_checkpoint(path)
    # The runner has moved the model to a GPU, if there is one.
    assert model.head.head.linear.weight.cpu().equal(before)
    for name, value in model.backbone.state_dict().items():
        assert value.cpu().equal(expected[f'backbone.{name}'])
    output = capsys.readouterr().out
    assert 'WARNING - Size mismatch for ' in output
    assert 'head.head.linear.weight (1000, 192) instead of (5, 192)' in output
    assert 'start from their initialization' in output


def test_training_for_the_same_classes_starts_from_all_weights(released, tmp_path, capsys):
    path, expected = released
    model = make_classifier('m0')
    make_runner(model, tmp_path).load_checkpoint(path)
    assert all(value.cpu().equal(expected[name]) for name, value in model.state_dict().items())
    assert 'Size mismatch' not in capsys.readouterr().out


class Detector(BaseModel):
    """A model of any library, whose head is for a number of classes."""

    def __init__(self, arch='m0', num_classes=80):
        super().__init__()
        self.backbone = EfficientViT(arch)
        self.bbox_head = torch.nn.Conv2d(192, num_classes, 1)

    def forward(self, inputs):
        return self.bbox_head(self.backbone(inputs)[-1])


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'epoch_1.pth'
    state = dict(meta=dict(epoch=1, iter=1), message_hub={}, optimizer={})
    torch.save(dict(state_dict=Detector().state_dict(), **state), path)
    return str(path)


def test_head_of_another_library_is_left_out(checkpoint, tmp_path, capsys):
    make_runner(Detector(num_classes=3), tmp_path).load_checkpoint(checkpoint)
    output = capsys.readouterr().out
    assert 'bbox_head.weight (80, 192, 1, 1) instead of (3, 192, 1, 1)' in output


def test_resuming_requires_all_weights(checkpoint, tmp_path):
    runner = make_runner(Detector(num_classes=3), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match='size mismatch for bbox_head.bias, bbox_head.w'):
        runner.load_checkpoint(checkpoint)
    make_runner(Detector(), tmp_path, resume=True).load_checkpoint(checkpoint)


def test_evit_backbone_of_another_arch_raises(released, tmp_path):
    runner = make_runner(Detector('m1'), tmp_path)
    with pytest.raises(CheckpointError, match="arch='m0'"):
        runner.load_checkpoint(released[0])


def test_local_backbone_of_another_arch_raises(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="arch='m0'"):
        make_runner(Detector('m1'), tmp_path).load_checkpoint(checkpoint)


def test_checkpoint_without_backbone_weights_raises(released, tmp_path):
    path = released[0].removeprefix('evit://')
    with pytest.raises(CheckpointError, match='no weights of the backbone.* load_from=evit://'):
        make_runner(Detector(), tmp_path).load_checkpoint(path)


def test_weights_of_a_model_that_is_a_backbone_are_found(tmp_path):
    backbone = EfficientViT('m0')
    weights = backbone.state_dict()
    drop_mismatched_weights(backbone, dict(state_dict=dict(weights)))
    mismatched = dict(weights, **{'stem.0.conv.weight': torch.zeros(8, 4, 3, 3)})
    drop_mismatched_weights(backbone, mismatched)
    assert mismatched.keys() == weights.keys()
    with pytest.raises(CheckpointError, match='no weights of the backbone'):
        drop_mismatched_weights(backbone, {})


def test_plain_weights_start_training_but_cannot_resume(tmp_path):
    expected, model = Detector(), Detector(num_classes=3)
    path = str(tmp_path / 'plain.pth')
    torch.save(expected.state_dict(), path)
    make_runner(model, tmp_path).load_checkpoint(path)
    for name, value in expected.backbone.state_dict().items():
        assert model.backbone.state_dict()[name].cpu().equal(value)
    with pytest.raises(CheckpointError, match='Cannot resume from the checkpoint: epoch, iter'):
        make_runner(Detector(), tmp_path, resume=True).load_checkpoint(path)
