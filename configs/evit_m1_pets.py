_base_ = 'evit_m5_pets.py'

model = dict(
    backbone=dict(arch='m1', init_cfg=dict(checkpoint='evit://m1')), head=dict(in_channels=192)
)
