# RetinaNet with EfficientViT-M4 on BCCD, from random weights, for two CPU cores.
_base_ = ['_base_/retinanet_evit_m4.py', '_base_/bccd_detection.py']

model = dict(
    backbone=dict(norm_eval=False, init_cfg=None),
    bbox_head=dict(num_classes=3),
)
