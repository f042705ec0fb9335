"""The network: backbone, neck, heads and distillation."""

from mmevit.utils.versions import can_import

from .attention import CascadedGroupAttention
from .efficientvit import EfficientViT, SandwichBlock

__all__ = ['CascadedGroupAttention', 'EfficientViT', 'SandwichBlock']

# The backbone needs mmengine and mmcv only; the rest extends a library that may not be installed.
if can_import('mmdet') or can_import('mmseg'):
    from .fpn import EfficientViTFPN

    __all__ += ['EfficientViTFPN']
if can_import('mmdet'):
    from . import contiguous, ssd_head  # noqa: F401 (patches mmcv and mmdet)
    from .distilled_detector import DistilledSingleStageDetector, DistilledTwoStageDetector
    from .retina_head import SyncedRetinaHead

    __all__ += [
        'DistilledSingleStageDetector',
        'DistilledTwoStageDetector',
        'SyncedRetinaHead',
    ]
if can_import('mmpretrain'):
    from .ablation import PlainWindowAttention, SwinLayoutBlock
    from .cls_head import EfficientViTClsHead
    from .distillation import DistilledImageClassifier

    __all__ += [
        'DistilledImageClassifier',
        'EfficientViTClsHead',
        'PlainWindowAttention',
        'SwinLayoutBlock',
    ]
