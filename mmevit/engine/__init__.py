"""Training and evaluation: hooks, optimizer wrappers, checkpoints and resuming."""

from mmevit.utils.versions import can_import

from .acceleration import ChannelsLastHook, CompileHook
from .adaptive_clipping import (
    AdaptiveClipAmpOptimWrapper,
    AdaptiveClipBfloat16OptimWrapper,
    AdaptiveClipOptimWrapper,
)
from .checkpointing import AtomicCheckpointHook
from .cpu_processes import CPUDistributedDataParallel
from .data_hooks import InvalidLabelsHook, UnreadableImagesHook
from .invalid_loss import InvalidLossHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .loading_hooks import StrictLoadHook, TrainingWeightsHook
from .mixed_precision import Bfloat16OptimWrapper
from .randomness import ResumableRandomnessHook
from .schedule import ConfigScheduleHook
from .training_curve import TrainingCurveHook

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
    from .det_visualization import IntervalDetVisualizationHook

    __all__ += ['IntervalDetVisualizationHook']
if can_import('mmseg'):
    from .seg_visualization import IntervalSegVisualizationHook

    __all__ += ['IntervalSegVisualizationHook']
