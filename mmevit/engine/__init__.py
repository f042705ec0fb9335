"""What runs the models: checks before a run, hooks during it, and the tools' common part."""

from importlib.util import find_spec

from .checks import ConfigError, check_config
from .hooks import TrainingCurveHook

__all__ = ['ConfigError', 'TrainingCurveHook', 'check_config']

if find_spec('mmdet'):
    from .det_visualization import IntervalDetVisualizationHook

    __all__ += ['IntervalDetVisualizationHook']
