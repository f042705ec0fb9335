"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from mmevit.utils.errors import CheckpointError, ConfigError

from .adaptive_clipping import (
    AdaptiveClipAmpOptimWrapper,
    AdaptiveClipBfloat16OptimWrapper,
    AdaptiveClipOptimWrapper,
)
from .checkpointing import AtomicCheckpointHook
from .data_hooks import InvalidLabelsHook, UnreadableImagesHook
from .hooks import (
    ChannelsLastHook,
    CompileHook,
    InvalidLossHook,
    StrictLoadHook,
    TrainingCurveHook,
    TrainingWeightsHook,
)
from .layer_decay import LayerDecayOptimWrapperConstructor
from .mixed_precision import Bfloat16OptimWrapper
from .randomness import ResumableRandomnessHook
from .schedule import ConfigScheduleHook

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipBfloat16OptimWrapper',
    'AdaptiveClipOptimWrapper',
    'Bfloat16OptimWrapper',
    'ChannelsLastHook',
    'CheckpointError',
    'CompileHook',
    'ConfigError',
    'ConfigScheduleHook',
    'InvalidLabelsHook',
    'InvalidLossHook',
    'LayerDecayOptimWrapperConstructor',
    'ResumableRandomnessHook',
    'AtomicCheckpointHook',
    'TrainingCurveHook',
    'TrainingWeightsHook',
    'UnreadableImagesHook',
    'StrictLoadHook',
]
