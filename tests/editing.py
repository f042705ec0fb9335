"""Configs that are parsed only once, files to be changed, and expected errors."""

import contextlib
import copy
import functools
import json

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from mmevit.utils.errors import ConfigError

DETECTOR = 'configs/retinanet_evit_m4_digits.py'
MASK_DETECTOR = 'configs/mask-rcnn_evit_m4_digits.py'
SEGMENTOR = 'configs/semantic-fpn_evit_m4_digits.py'
CLASSIFIER = 'configs/evit_m0_digits.py'


@functools.cache
def parse(name):
    return get_config(name) if '::' in name else Config.fromfile(name)


def load(name, data_root=None):
    """Load a config that the test may change; of one for the digits, set their folder."""
    cfg = copy.deepcopy(parse(name))
    for split in ('train', 'val', 'test') if data_root else ():
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data_root}/'
    for split in ('val', 'test') if data_root and 'ann_file' in cfg.val_evaluator else ():
        cfg[f'{split}_evaluator'].ann_file = f'{data_root}/annotations/instances_val.json'
    return cfg


def edit(path, function):
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


@contextlib.contextmanager
def expect_error(*parts):
    """Expect a ConfigError of one line with these parts."""
    with pytest.raises(ConfigError) as caught:
        yield caught
    message = str(caught.value)
    assert '\n' not in message
    for part in parts:
        assert str(part) in message
