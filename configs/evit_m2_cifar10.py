_base_ = 'evit_m5_cifar10.py'

model = dict(
    backbone=dict(arch='m2', init_cfg=dict(checkpoint='evit://m2')), head=dict(in_channels=224)
)
