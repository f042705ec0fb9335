"""The examples of docs/plug_in.md for timm's interface, plain PyTorch and Lightning."""

import re

import pytest
import timm
import torch
from plug_in_table import DOCS
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from mmevit.models import EfficientViT

SECTION = re.compile(r'^## (.*?)\n.*?```python\n(.*?)```', re.DOTALL | re.MULTILINE)
EXAMPLES = dict(SECTION.findall(DOCS.read_text()))


@pytest.fixture
def run(hub, tmp_path, monkeypatch):
    """Run an example in an empty folder, with a hub and a loader of 0s and 1s for ten classes."""
    model = timm.create_model('efficientvit_m0')
    hub.add('timm/efficientvit_m0.r224_in1k', 'model.safetensors', save(model.state_dict()))
    monkeypatch.chdir(tmp_path)
    images, labels = (torch.from_numpy(array) for array in load_digits(n_class=2, return_X_y=True))
    images = (images[:64].float() / 16).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    images = torch.nn.functional.interpolate(images, size=(64, 64))
    loader = DataLoader(TensorDataset(images, labels[:64]), batch_size=16)
    names = dict(loader=loader)

    def run_example(heading):
        exec(EXAMPLES[heading], names)
        return names

    return run_example


def is_trained(backbone):
    """Whether a backbone is another one than the example starts from."""
    start = EfficientViT.from_pretrained('timm/efficientvit_m0.r224_in1k').state_dict()
    weights = backbone.state_dict()
    return weights.keys() == start.keys() and not weights['stem.0.conv.weight'].equal(
        start['stem.0.conv.weight']
    )


def test_example_of_timms_interface_gives_the_maps_that_it_states(run):
    names = run('Features as in timm')
    assert [tuple(names[name].shape) for name in ('first', 'second', 'last')] == [
        (1, 64, 14, 14),
        (1, 128, 7, 7),
        (1, 192, 4, 4),
    ]
    stated = re.findall(r'(\w+\(\))  # (\[.*\])', EXAMPLES['Features as in timm'])
    assert len(stated) == 2
    for call, value in stated:
        assert eval(f'backbone.feature_info.{call}', names) == eval(value)


def test_plain_loop_learns_and_its_weights_load(run):
    names = run('Plain PyTorch')
    assert names['loss'] < 0.5  # log(10) = 2.3 at the start
    assert is_trained(EfficientViT.from_pretrained('classifier.pth'))


def test_lightning_learns_and_its_checkpoint_loads(run):
    pytest.importorskip('lightning')
    run('Plain PyTorch')
    names = run('Lightning')
    assert names['trainer'].callback_metrics['loss'] < 0.5
    assert is_trained(EfficientViT.from_pretrained('classifier.ckpt'))
