_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m5', init_cfg=dict(checkpoint='evit://m5')),
    neck=dict(in_channels=[96, 192, 288, 384]),
)
