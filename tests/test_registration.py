"""What configs name is found, whatever is imported first, and only what is ours is registered."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.registry import (
    HOOKS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

import mmevit

ROOT = Path(__file__).parents[1]
REGISTERED = {
    MODELS: [
        'CascadedGroupAttention',
        'DistilledImageClassifier',
        'EfficientViT',
        'EfficientViTClsHead',
        'EfficientViTFPN',
        'ExportedClassifier',
        'ExportedDetector',
        'PlainWindowAttention',
        'SandwichBlock',
        'SwinLayoutBlock',
        'SyncedRetinaHead',
    ],
    MODEL_WRAPPERS: ['CPUDistributedDataParallel'],
    TRANSFORMS: ['LoadReadableImage'],
    HOOKS: [
        'AtomicCheckpointHook',
        'ChannelsLastHook',
        'CompileHook',
        'ConfigScheduleHook',
        'FoldHook',
        'IntervalDetVisualizationHook',
        'IntervalSegVisualizationHook',
        'InvalidLabelsHook',
        'InvalidLossHook',
        'ResumableRandomnessHook',
        'StrictLoadHook',
        'TrainingCurveHook',
        'TrainingWeightsHook',
        'UnreadableImagesHook',
    ],
    OPTIM_WRAPPERS: [
        'AdaptiveClipAmpOptimWrapper',
        'AdaptiveClipBfloat16OptimWrapper',
        'AdaptiveClipOptimWrapper',
        'Bfloat16OptimWrapper',
    ],
    OPTIM_WRAPPER_CONSTRUCTORS: ['LayerDecayOptimWrapperConstructor'],
}


@pytest.mark.parametrize('registry', REGISTERED, ids=lambda registry: registry.name)
def test_names_that_configs_may_use_are_registered_and_no_others(registry):
    own = [n for n, cls in registry.module_dict.items() if cls.__module__.startswith('mmevit.')]
    assert sorted(own) == REGISTERED[registry]


@pytest.mark.parametrize('library', ['mmdet', 'mmpretrain', 'mmseg'])
def test_library_that_cannot_be_imported_is_skipped_with_a_warning(library, tmp_path, run_tool):
    (tmp_path / library).mkdir()
    (tmp_path / library / '__init__.py').write_text("raise ImportError('built for another mmcv')")
    result = run_tool(
        *(sys.executable, '-c', 'import mmevit; print(mmevit.EfficientViT.__name__)'),
        env=dict(PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT)))),
    )
    assert result.stdout.splitlines()[-1] == 'EfficientViT'
    assert f'{library} is installed, but cannot be imported' in result.stdout
    assert 'built for another mmcv' in result.stdout


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
