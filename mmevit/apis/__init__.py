"""Prediction on images, folders and videos; models on the Hugging Face Hub."""

from mmevit.utils.versions import can_import

from .hub import from_pretrained, push_to_hub, save_pretrained
from .inference import infer

__all__ = ['from_pretrained', 'infer', 'push_to_hub', 'save_pretrained']

if can_import('mmdet'):
    from .inferencers import DetInferencer

    __all__ += ['DetInferencer']
if can_import('mmseg'):
    from .inferencers import MMSegInferencer

    __all__ += ['MMSegInferencer']
