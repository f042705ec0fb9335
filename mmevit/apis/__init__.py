"""Prediction on images, folders and videos."""

from importlib.util import find_spec

from .inference import infer

__all__ = ['infer']

if find_spec('mmdet'):
    from .inferencers import DetInferencer

    __all__ += ['DetInferencer']
if find_spec('mmseg'):
    from .inferencers import MMSegInferencer

    __all__ += ['MMSegInferencer']
