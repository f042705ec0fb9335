from collections import OrderedDict

import mmpretrain  # noqa: F401  what it prints when it is imported belongs to no example
import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def no_default_scope(monkeypatch):
    """Let no test, nor any example in a docstring, look names up where the one before did."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
