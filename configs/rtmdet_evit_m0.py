_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m0', init_cfg=dict(checkpoint='evit://m0')),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64),
)
