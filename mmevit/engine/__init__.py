"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from mmevit.errors import CheckpointError, ConfigError

from . import visualization
from .adaptive_clipping import (
    AdaptiveClipAmpOptimWrapper,
    AdaptiveClipBfloat16OptimWrapper,
    AdaptiveClipOptimWrapper,
)
from .checks import check_config
from .hooks import ChannelsLastHook, CompileHook, TrainingCurveHook, WholeCheckpointHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .mixed_precision import Bfloat16OptimWrapper

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipBfloat16OptimWrapper',
    'AdaptiveClipOptimWrapper',
    'Bfloat16OptimWrapper',
    'ChannelsLastHook',
    'CheckpointError',
    'CompileHook',
    'ConfigError',
    'LayerDecayOptimWrapperConstructor',
    'TrainingCurveHook',
    'WholeCheckpointHook',
    'check_config',
    'visualization',
]
