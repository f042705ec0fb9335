"""Training and evaluation: hooks, optimizer wrappers, checkpoints and resuming."""

from mmevit.utils.versions import can_import

from .checkpointing import AtomicCheckpointHook, StrictLoadHook, TrainingWeightsHook
from .cpu_processes import CPUDistributedDataParallel
from .data_hooks import InvalidLabelsHook, UnreadableImagesHook
from .hooks import ChannelsLastHook, CompileHook, InvalidLossHook, TrainingCurveHook
from .optim_wrappers import (
    AdaptiveClipAmpOptimWrapper,
    AdaptiveClipBfloat16OptimWrapper,
    AdaptiveClipOptimWrapper,
    Bfloat16OptimWrapper,
    GroupedOptimWrapperConstructor,
    LayerDecayOptimWrapperConstructor,
)
from .randomness import ResumableRandomnessHook
from .schedule import ConfigScheduleHook

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipBfloat16OptimWrapper',
    'AdaptiveClipOptimWrapper',
    'AtomicCheckpointHook',
    'Bfloat16OptimWrapper',
    'CPUDistributedDataParallel',
    'ChannelsLastHook',
    'CompileHook',
    'ConfigScheduleHook',
    'GroupedOptimWrapperConstructor',
    'InvalidLabelsHook',
    'InvalidLossHook',
    'LayerDecayOptimWrapperConstructor',
    'ResumableRandomnessHook',
    'StrictLoadHook',
    'TrainingCurveHook',
    'TrainingWeightsHook',
    'UnreadableImagesHook',
]

if can_import('mmdet'):
    from .visualization import IntervalDetVisualizationHook

    __all__ += ['IntervalDetVisualizationHook']
if can_import('mmseg'):
    from .visualization import IntervalSegVisualizationHook

    __all__ += ['IntervalSegVisualizationHook']
