# RetinaNet 1x on COCO with EfficientViT-M4 and a cosine schedule; not measured on COCO.
_base_ = [
    '_base_/retinanet_evit_m4.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/coco_1x_cosine.py',
]

model = dict(backbone=dict(drop_path_rate=0.05))
