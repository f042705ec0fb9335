_base_ = 'rtmdet_evit_m4.py'

model = dict(
    backbone=dict(arch='m0', init_cfg=dict(checkpoint='evit://m0')),
    neck=dict(in_channels=[64, 128, 192]),
)
