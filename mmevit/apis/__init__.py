"""Prediction on images, folders and videos."""

from mmevit.utils.versions import can_import

from .inference import infer

__all__ = ['infer']

if can_import('mmdet'):
    from .inferencers import DetInferencer

    __all__ += ['DetInferencer']
if can_import('mmseg'):
    from .inferencers import MMSegInferencer

    __all__ += ['MMSegInferencer']
