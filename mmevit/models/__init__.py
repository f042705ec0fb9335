"""The network: backbone, neck, heads and distillation."""

from importlib.util import find_spec

from .attention import CascadedGroupAttention
from .efficientvit import EfficientViT, SandwichBlock

__all__ = ['CascadedGroupAttention', 'EfficientViT', 'SandwichBlock']

# The backbone needs mmengine and mmcv only; the rest extends a library that may not be installed.
if find_spec('mmdet') or find_spec('mmseg'):
    from .fpn import EfficientViTFPN

    __all__ += ['EfficientViTFPN']
if find_spec('mmdet'):
    from .retina_head import SyncedRetinaHead

    __all__ += ['SyncedRetinaHead']
if find_spec('mmpretrain'):
    from .ablation import PlainWindowAttention, SwinLayoutBlock
    from .cls_head import EfficientViTClsHead
    from .distillation import DistilledImageClassifier

    __all__ += [
        'DistilledImageClassifier',
        'EfficientViTClsHead',
        'PlainWindowAttention',
        'SwinLayoutBlock',
    ]
