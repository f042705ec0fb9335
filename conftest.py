from collections import OrderedDict

import mmpretrain.datasets  # noqa: F401  what it prints when imported belongs to no example
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

# Its stream is the standard output of when it is made, which is not to be that of an example.
MMLogger.get_current_instance()


@pytest.fixture(autouse=True)
def no_default_scope(monkeypatch):
    """Let no test, nor any example in a docstring, look names up where the one before did."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
