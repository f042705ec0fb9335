"""What configs name is found, whatever is imported first, and only what is ours is registered."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmengine import registry
from mmengine.registry import MODELS

import mmevit

ROOT = Path(__file__).parents[1]
REGISTERED = dict(
    MODELS="""
        CascadedGroupAttention DistilledImageClassifier DistilledSingleStageDetector
        DistilledTwoStageDetector EfficientViT EfficientViTClsHead EfficientViTFPN
        ExportedClassifier ExportedDetector ExportedSegmentor PlainWindowAttention SandwichBlock
        SwinLayoutBlock SyncedRetinaHead
    """,
    MODEL_WRAPPERS='CPUDistributedDataParallel',
    TRANSFORMS='LoadReadableImage',
    HOOKS="""
        AtomicCheckpointHook ChannelsLastHook CompileHook ConfigScheduleHook FoldHook
        IntervalDetVisualizationHook IntervalSegVisualizationHook InvalidLabelsHook InvalidLossHook
        ResumableRandomnessHook StrictLoadHook TrainingCurveHook TrainingWeightsHook
        UnreadableImagesHook
    """,
    OPTIM_WRAPPERS="""
        AdaptiveClipAmpOptimWrapper AdaptiveClipBfloat16OptimWrapper AdaptiveClipOptimWrapper
        Bfloat16OptimWrapper
    """,
    OPTIM_WRAPPER_CONSTRUCTORS="""
        GroupedOptimWrapperConstructor LayerDecayOptimWrapperConstructor
    """,
)


@pytest.mark.parametrize('name', REGISTERED)
def test_names_that_configs_may_use_are_registered_and_no_others(name):
    classes = getattr(registry, name).module_dict.items()
    own = [name for name, cls in classes if cls.__module__.startswith('mmevit.')]
    assert sorted(own) == REGISTERED[name].split()


def test_libraries_that_cannot_be_imported_are_skipped_with_a_warning(tmp_path, run_tool):
    libraries = ('mmdet', 'mmpretrain', 'mmseg')
    for library in libraries:
        (tmp_path / f'{library}.py').write_text("raise ImportError('built for another mmcv')")
    result = run_tool(
        *(sys.executable, '-c', 'import mmevit; print(mmevit.EfficientViT.__name__)'),
        env=dict(PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT)))),
    )
    assert result.stdout.splitlines()[-1] == 'EfficientViT'
    for library in libraries:
        reason = 'ImportError: built for another mmcv'
        assert f'{library} is installed, but cannot be imported ({reason})' in result.stdout


def test_names_are_found_when_the_libraries_are_imported_first(run_tool):
    """The tests themselves import mmevit first."""
    names = ['EfficientViTFPN', 'SyncedRetinaHead', 'IntervalSegVisualizationHook', 'FoldHook']
    result = run_tool(
        *(sys.executable, '-c'),
        'import mmdet.models, mmseg.models, mmevit; from mmengine.registry import HOOKS, MODELS; '
        f'print([(MODELS.get(name) or HOOKS.get(name)).__name__ for name in {names}])',
    )
    assert result.stdout.splitlines()[-1] == str(names)


def test_only_the_warning_of_faster_coco_eval_is_hidden(run_tool):
    result = run_tool(
        *(sys.executable, '-W', 'default', '-c'),
        'import mmevit, warnings; warnings.warn("faster_coco_eval is not installed, in a script")',
    )
    shown = [line for line in result.stdout.splitlines() if 'UserWarning: faster_coco' in line]
    assert len(shown) == 1 and shown[0].endswith('in a script')


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
