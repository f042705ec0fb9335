from collections import OrderedDict

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_default_scope(monkeypatch):
    """Let no test, nor any example in a docstring, look names up where the one before did."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
