"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from mmevit.errors import CheckpointError, ConfigError

from .adaptive_clipping import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from .checks import check_config
from .hooks import TrainingCurveHook, WholeCheckpointHook
from .visualization import IntervalDrawing

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipOptimWrapper',
    'CheckpointError',
    'ConfigError',
    'IntervalDrawing',
    'TrainingCurveHook',
    'WholeCheckpointHook',
    'check_config',
]
