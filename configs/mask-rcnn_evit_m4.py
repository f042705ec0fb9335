# Mask R-CNN 1x on COCO with EfficientViT-M4; published: 31.0 mask AP.
_base_ = [
    '_base_/mask-rcnn_evit_m4.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/coco_1x.py',
]
