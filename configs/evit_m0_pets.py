_base_ = 'evit_m5_pets.py'

model = dict(
    backbone=dict(arch='m0', init_cfg=dict(checkpoint='evit://m0')), head=dict(in_channels=192)
)
