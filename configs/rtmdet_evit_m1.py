_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m1', init_cfg=dict(checkpoint='evit://m1')),
    neck=dict(in_channels=[64, 128, 144, 192], out_channels=96),
    bbox_head=dict(in_channels=96, feat_channels=96),
)
