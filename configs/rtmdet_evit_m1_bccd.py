# RTMDet with EfficientViT-M1 on BCCD, from random weights, for two CPU cores.
_base_ = ['_base_/rtmdet_evit_m4.py', '_base_/bccd_detection.py']

model = dict(
    backbone=dict(arch='m1', init_cfg=None),
    neck=dict(in_channels=[64, 128, 144, 192], out_channels=96),
    bbox_head=dict(num_classes=3, in_channels=96, feat_channels=96),
)
