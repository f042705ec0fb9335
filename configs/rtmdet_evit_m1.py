_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m1', init_cfg=dict(checkpoint='evit://m1')),
    neck=dict(in_channels=[128, 144, 192]),
)
