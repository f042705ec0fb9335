_base_ = 'evit_m5_cifar100.py'

model = dict(
    backbone=dict(arch='m3', init_cfg=dict(checkpoint='evit://m3')), head=dict(in_channels=320)
)
