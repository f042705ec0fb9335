# RetinaNet on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/retinanet_evit_m4.py', '_base_/digits_detection.py']

model = dict(
    **_base_.from_scratch,
    bbox_head=dict(
        type='SyncedRetinaHead',
        num_classes=10,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        norm_cfg=dict(type='GN', num_groups=16),
    ),
    # No two digits overlap, so a second guess at the same place is none to show.
    test_cfg=dict(nms=dict(class_agnostic=True)),
)
