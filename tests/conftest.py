import functools
import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.fileio import YamlHandler, register_handler
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader
from running_tools import ROOT, run_tool
from serving_hub import HUB

from mmevit.checkpoint import reading
from mmevit.datasets import prepare_digits
from mmevit.models import EfficientViT

# Without TF32, results on a GPU depend as little on the batch size as on a CPU. The variable is for
# the processes of commands.
torch.backends.cudnn.allow_tf32 = False
os.environ['NVIDIA_TF32_OVERRIDE'] = '0'
# Configs, not modules.
collect_ignore = ['cli/python_config']


@functools.cache
def parse_yaml(text):
    return pickle.dumps(YamlHandler().load_from_fileobj(io.StringIO(text)))


@register_handler(['yaml', 'yml'])
class CachedYamlHandler(YamlHandler):
    """Saves time: mmengine parses all metafiles of a library for each ``mmdet::`` in ``_base_``."""

    def load_from_fileobj(self, file, **kwargs):
        return pickle.loads(parse_yaml(file.read()))


@pytest.fixture(autouse=True)
def seeded_and_in_the_root_folder(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def hub():
    """A server that stands in for the Hugging Face Hub, and an empty cache."""
    yield HUB
    HUB.clear()


@pytest.fixture
def own_loading(monkeypatch):
    """Restore checkpoint loading after a test that runs a command in this process."""
    monkeypatch.setenv(reading.FORCE_SAFE, '0')
    monkeypatch.setenv(reading.FORCE_UNSAFE, '0')
    monkeypatch.setattr(reading, 'trust_checkpoints', False)
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))


@pytest.fixture
def log(tmp_path):
    """The file that mmengine's logger writes to in this test."""
    path = tmp_path / 'log.txt'
    # A name of its own: an instance that is there already would keep its log file.
    MMLogger.get_instance(str(path), logger_name='mmengine', log_file=str(path))
    return path


@pytest.fixture(scope='session')
def randomised():
    """Make a backbone in which nothing is at the value that hides it, such as a zero bias."""

    def make(*args, **kwargs):
        model = EfficientViT(*args, **kwargs)
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(('norm.weight', 'running_var')):
                torch.nn.init.uniform_(value, 0.5, 1.5)
            elif name.endswith(('bias', 'running_mean', 'attention_biases')):
                torch.nn.init.normal_(value, std=0.5)
        return model

    return make


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A small digits set, which tests read but do not write."""
    root = tmp_path_factory.mktemp('data') / 'digits'
    prepare_digits(root, num_train=16, num_val=8)
    return root


@pytest.fixture
def root(digits, tmp_path):
    """Scenes and their annotations, to be changed."""
    # The single digits are many files.
    ignore = shutil.ignore_patterns('classification')
    return shutil.copytree(digits, tmp_path / 'digits', ignore=ignore)


@pytest.fixture(scope='session')
def bccd():
    """Photographs with boxes, next to the checkout or one of its parents."""
    places = [parent / 'shared/data/bccd' for parent in Path(__file__).resolve().parents[2:]]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip(f'BCCD is not there: {places[0]}')


@pytest.fixture(scope='session', name='run_tool')
def make_run_tool():
    """Run a tool as a user does, in a process of its own."""
    return run_tool
