import re
from collections import OrderedDict

import mmpretrain.datasets  # noqa: F401  what it prints when imported belongs to no example
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from packaging.version import Version

# Its stream is the standard output of when it is made, which is not to be that of an example.
MMLogger.get_current_instance()


@pytest.fixture(autouse=True)
def no_default_scope(monkeypatch):
    """Let no test, nor any example in a docstring, look names up where the one before did."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip what the PyTorch of the original OpenMMLab is too old for, if it ends in saying so."""
    report = yield
    reason = report.failed and re.search(r'PyTorch \d\S+ is too old[^:\n]*', str(report.longrepr))
    if reason and Version(torch.__version__) < Version('2.5'):
        report.outcome = 'skipped'
        report.longrepr = (str(item.path), None, reason[0])
    return report
