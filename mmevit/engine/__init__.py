"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from mmevit.errors import CheckpointError, ConfigError

from . import visualization
from .adaptive_clipping import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from .checks import check_config
from .hooks import TrainingCurveHook, WholeCheckpointHook
from .layer_decay import LayerDecayOptimWrapperConstructor

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipOptimWrapper',
    'CheckpointError',
    'ConfigError',
    'LayerDecayOptimWrapperConstructor',
    'TrainingCurveHook',
    'WholeCheckpointHook',
    'check_config',
    'visualization',
]
