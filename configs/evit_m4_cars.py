_base_ = 'evit_m5_cars.py'

model = dict(
    backbone=dict(arch='m4', init_cfg=dict(checkpoint='evit://m4')), head=dict(in_channels=384)
)
