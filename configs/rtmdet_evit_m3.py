_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m3', init_cfg=dict(checkpoint='evit://m3')),
    neck=dict(in_channels=[64, 128, 240, 320]),
)
