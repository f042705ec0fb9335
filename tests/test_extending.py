"""Importing mmevit imports no other library, and yet everything is found by its name."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmevit.extending import REGISTERED, modules_by_name, when_imported

ROOT = Path(__file__).parents[1]

HEAVY = ('mmdet', 'mmpretrain', 'mmseg', 'timm', 'matplotlib', 'mmengine.model', 'mmcv.cnn')


def test_importing_mmevit_imports_nothing_that_is_not_needed(run_tool):
    result = run_tool(
        *(sys.executable, '-c'),
        f'import sys, mmengine, mmcv; before = set(sys.modules); import mmevit; '
        f'print("new", {{*{HEAVY}}} & (set(sys.modules) - before))',
    )
    assert result.stdout.splitlines()[-1] == 'new set()'


@pytest.mark.parametrize(
    ('modules', 'registry', 'names'),
    [
        ('mmevit', 'MODELS', ['EfficientViT', 'EfficientViTFPN', 'EfficientViTClsHead']),
        ('mmevit', 'OPTIM_WRAPPERS', ['AdaptiveClipOptimWrapper', 'Bfloat16OptimWrapper']),
        pytest.param(
            'mmevit, mmdet.models',
            'MODELS',
            ['SyncedRetinaHead', 'EfficientViTFPN'],
            marks=pytest.mark.slow,
        ),
        ('mmdet.models, mmevit', 'MODELS', ['SyncedRetinaHead', 'EfficientViTFPN']),
        ('mmevit, mmdet.engine.hooks', 'HOOKS', ['IntervalDetVisualizationHook', 'FoldHook']),
        ('mmseg.models, mmevit', 'HOOKS', ['IntervalSegVisualizationHook', 'AtomicCheckpointHook']),
    ],
)
def test_what_configs_may_name_is_found_whatever_is_imported_first(
    modules, registry, names, run_tool
):
    result = run_tool(
        *(sys.executable, '-c'),
        f'import {modules}; from mmengine.registry import {registry}; '
        f'print([{registry}.get(name).__name__ for name in {names}])',
    )
    assert result.stdout.splitlines()[-1] == str(names)


def test_public_names_can_be_imported_before_their_library(run_tool):
    result = run_tool(
        *(sys.executable, '-c'),
        'from mmevit.models import DistilledImageClassifier, EfficientViTFPN; '
        'import mmevit; mmevit.checkpoint.convert_checkpoint; print("fine")',
    )
    assert result.stdout.splitlines()[-1] == 'fine'
    with pytest.raises(AttributeError, match="'mmevit' has no attribute 'no_such'"):
        sys.modules['mmevit'].no_such  # noqa: B018


def test_an_extension_waits_for_its_module_and_comes_once(tmp_path, monkeypatch):
    (tmp_path / 'extended_module.py').write_text('value = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    when_imported('extended_module', lambda: seen.append(sys.modules['extended_module'].value))
    assert seen == []
    import extended_module

    assert extended_module.__name__ == 'extended_module' and seen == [1]
    when_imported('extended_module', lambda: seen.append('at once'))
    assert seen == [1, 'at once']


def test_a_module_that_is_not_installed_is_told_as_ever():
    when_imported('no_such_module', pytest.fail)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        import no_such_module  # noqa: F401


def test_all_that_this_package_registers_is_listed_and_nothing_else():
    for path in (ROOT / 'mmevit').rglob('*.py'):
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        if '@' in path.read_text() and 'register_module(' in path.read_text():
            import_module(module)
    for registry in {row[0] for row in REGISTERED}:
        own = {
            name: found.__module__
            for name, found in registry.module_dict.items()
            if found.__module__.startswith('mmevit.')
        }
        assert own == modules_by_name(registry)


def test_ours_can_be_overridden_as_any_other_module(run_tool):
    result = run_tool(
        *(sys.executable, '-c'),
        'import mmevit; from mmengine.registry import MODELS\n'
        "MODELS.register_module('SandwichBlock', force=True, module=dict)\n"
        "print(MODELS.get('SandwichBlock'), MODELS.get('EfficientViT').__name__, "
        "MODELS.module_dict['EfficientViTFPN'].__name__)",
    )
    assert result.stdout.splitlines()[-1] == "<class 'dict'> EfficientViT EfficientViTFPN"
