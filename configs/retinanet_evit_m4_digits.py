# RetinaNet on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/retinanet_evit_m4.py', '_base_/digits_detection.py']

model = dict(
    # Trained from random weights: batch norm is trained, and neck and heads have norm layers. Fewer
    # channels than on COCO train faster.
    backbone=dict(norm_eval=False, init_cfg=None),
    neck=dict(out_channels=128, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        type='SyncedRetinaHead',
        num_classes=10,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
    ),
    # Digits do not overlap: keep one class per place.
    test_cfg=dict(nms=dict(class_agnostic=True)),
)
