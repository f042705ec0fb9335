# RetinaNet 1x on COCO with EfficientViT-M4; published: 32.7 box AP.
_base_ = [
    '_base_/retinanet_evit_m4.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/coco_1x.py',
]
