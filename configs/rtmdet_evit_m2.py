_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m2', init_cfg=dict(checkpoint='evit://m2')),
    neck=dict(in_channels=[64, 128, 192, 224], out_channels=112),
    bbox_head=dict(in_channels=112, feat_channels=112),
)
