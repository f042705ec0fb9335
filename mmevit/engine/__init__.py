"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from mmevit.errors import CheckpointError, ConfigError

from .adaptive_clipping import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from .checks import check_config
from .hooks import TrainingCurveHook, WholeCheckpointHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .video import accept_videos
from .visualization import IntervalDrawing

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipOptimWrapper',
    'CheckpointError',
    'ConfigError',
    'IntervalDrawing',
    'LayerDecayOptimWrapperConstructor',
    'TrainingCurveHook',
    'WholeCheckpointHook',
    'accept_videos',
    'check_config',
]
