"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from importlib.util import find_spec

from mmevit.errors import CheckpointError, ConfigError

from .adaptive_clipping import AdaptiveClipAmpOptimWrapper, AdaptiveClipOptimWrapper
from .checks import check_config
from .hooks import TrainingCurveHook, WholeCheckpointHook

__all__ = [
    'AdaptiveClipAmpOptimWrapper',
    'AdaptiveClipOptimWrapper',
    'CheckpointError',
    'ConfigError',
    'TrainingCurveHook',
    'WholeCheckpointHook',
    'check_config',
]

if find_spec('mmdet'):
    from .det_visualization import IntervalDetVisualizationHook

    __all__ += ['IntervalDetVisualizationHook']
