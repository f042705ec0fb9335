"""The network: backbone, necks and heads. Importing this registers them with OpenMMLab."""

from importlib.util import find_spec

from .efficientvit import EfficientViT

__all__ = ['EfficientViT']

# The backbone is enough for those who have none of them.
if find_spec('mmdet') or find_spec('mmseg'):
    from .fpn import EfficientViTFPN

    __all__ += ['EfficientViTFPN']
if find_spec('mmdet'):
    from .retina_head import SyncedRetinaHead

    __all__ += ['SyncedRetinaHead']
if find_spec('mmpretrain'):
    from .cls_head import EfficientViTClsHead
    from .distillation import DistilledImageClassifier
    from .swin_parts import PlainWindowAttention, SwinLayoutBlock

    __all__ += [
        'DistilledImageClassifier',
        'EfficientViTClsHead',
        'PlainWindowAttention',
        'SwinLayoutBlock',
    ]
