# RTMDet on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/rtmdet_evit_m4.py', '_base_/digits_detection.py']

model = dict(
    backbone=dict(arch='m0', init_cfg=None),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    bbox_head=dict(num_classes=10, in_channels=64, feat_channels=64),
    # Digits do not overlap: keep one class per place.
    test_cfg=dict(score_thr=0.05, nms=dict(class_agnostic=True)),
)
optim_wrapper = dict(optimizer=dict(lr=8e-3))
train_cfg = dict(max_epochs=6)
