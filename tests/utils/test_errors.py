"""Which errors are a config's, and which keep their traceback."""

import sys

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from mmevit.utils.configs import build_model, read_config
from mmevit.utils.errors import ConfigError

OWN_MODULE = """
from mmengine.registry import MODELS
from torch import nn

@MODELS.register_module(name='OwnNet', force=True)
class OwnNet(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        {body}
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
    """Register a network from a module of the user."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(body):
        (tmp_path / 'own_net.py').write_text(OWN_MODULE.format(body=body))
        monkeypatch.delitem(sys.modules, 'own_net', raising=False)
        import own_net  # noqa: F401

        return ConfigDict(model=dict(type='OwnNet'))

    yield make
    MODELS._module_dict.pop('OwnNet', None)


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='NoSuchNet'), 'Cannot build from the config: KeyError.*NoSuchNet is not in'),
        (dict(), 'must contain the key "type"'),
        (dict(type='EfficientViT', no_such_argument=1), "unexpected keyword argument 'no_such"),
        (dict(type='EfficientViT', arch='m9'), 'm9'),
    ],
)
def test_a_wrong_name_or_argument_is_a_config_error(model, message):
    with pytest.raises(ConfigError, match=message):
        build_model(ConfigDict(model=model))


def test_a_missing_setting_is_a_config_error():
    cfg = Config.fromfile('configs/mask-rcnn_evit_m4_digits.py')
    cfg.model.train_cfg = dict(rcnn=dict())
    with pytest.raises(ConfigError, match="has no attribute 'rpn'"):
        build_model(cfg)


@pytest.mark.parametrize(
    ('body', 'error'),
    [
        ('self.table = dict(a=1)[width]', KeyError),
        ("raise ValueError('mine')", ValueError),
        # Raised by PyTorch, but called by the user's module.
        ('nn.init.constant_(self.missing, 0)', AttributeError),
        ("raise RuntimeError('CUDA error: out of memory')", RuntimeError),
    ],
)
def test_an_error_in_a_module_of_the_user_keeps_its_type_and_traceback(own_net, body, error):
    with pytest.raises(error) as caught:
        build_model(own_net(body))
    assert caught.type is error
    assert any(entry.path.name == 'own_net.py' for entry in caught.traceback)


def test_a_wrong_argument_of_a_module_of_the_user_is_a_config_error(own_net):
    cfg = own_net('pass')
    cfg.model.widht = 5
    with pytest.raises(ConfigError, match="unexpected keyword argument 'widht'"):
        build_model(cfg)


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory.')
        if hasattr(torch, 'OutOfMemoryError')
        else torch.cuda.OutOfMemoryError('CUDA out of memory.'),
        RuntimeError('NCCL error in: ProcessGroupNCCL.cpp'),
        OSError(98, 'Address already in use'),
        MemoryError(),
    ],
    ids=repr,
)
def test_errors_of_devices_and_processes_are_not_config_errors(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr('mmevit.models.efficientvit.EfficientViT.__init__', fail)
    with pytest.raises(type(error)) as caught:
        build_model(ConfigDict(model=dict(type='EfficientViT')))
    assert caught.value is error


@pytest.mark.parametrize(
    ('content', 'error', 'message'),
    [
        ('1 / 0', ZeroDivisionError, 'division by zero'),
        ('import no_such_library', ImportError, 'Failed to import own_part'),
    ],
)
def test_an_error_in_a_custom_import_keeps_its_traceback(
    tmp_path, monkeypatch, content, error, message
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'own_part', raising=False)
    (tmp_path / 'own_part.py').write_text(content)
    (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['own_part'])")
    with pytest.raises(error, match=message):
        read_config(tmp_path / 'config.py', None)


def test_a_missing_custom_import_is_a_config_error(tmp_path):
    (tmp_path / 'config.py').write_text("custom_imports = dict(imports=['no_such_module'])")
    with pytest.raises(ConfigError, match='Failed to import no_such_module'):
        read_config(tmp_path / 'config.py', None)
