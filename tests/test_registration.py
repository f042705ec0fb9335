"""What configs name is found, whatever is imported first, and only what is ours is registered."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.registry import MODELS

import mmevit


@pytest.mark.parametrize(
    ('modules', 'registry', 'names'),
    [
        ('mmevit', 'MODELS', ['EfficientViT', 'SyncedRetinaHead', 'EfficientViTClsHead']),
        ('mmdet.models, mmevit', 'MODELS', ['SyncedRetinaHead', 'EfficientViTFPN']),
        ('mmseg.models, mmevit', 'HOOKS', ['IntervalSegVisualizationHook', 'FoldHook']),
    ],
)
def test_names_are_found_whatever_is_imported_first(modules, registry, names, run_tool):
    result = run_tool(
        *(sys.executable, '-c'),
        f'import {modules}; from mmengine.registry import {registry}; '
        f'print([{registry}.get(name).__name__ for name in {names}])',
    )
    assert result.stdout.splitlines()[-1] == str(names)


def test_ours_can_be_overridden(monkeypatch):
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS._module_dict))
    MODELS.register_module('SandwichBlock', force=True, module=dict)
    assert MODELS.get('SandwichBlock') is dict
    assert import_module('mmdet.registry').MODELS.get('SandwichBlock') is dict
    assert MODELS.get('EfficientViT') is mmevit.EfficientViT


def test_rooms_import_downwards_only():
    """The table of rooms is in pyproject.toml."""
    result = subprocess.run(
        [Path(sys.executable).with_name('lint-imports')], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
