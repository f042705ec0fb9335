# RTMDet on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/rtmdet_evit_m4.py', '_base_/digits_detection.py']

model = dict(
    backbone=dict(arch='m0', init_cfg=None),
    neck=dict(in_channels=[64, 128, 192]),
    bbox_head=dict(num_classes=10),
    # Digits do not overlap: keep one class per place.
    test_cfg=dict(nms=dict(class_agnostic=True)),
)
# The head's convolutions are those of all levels.
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))
