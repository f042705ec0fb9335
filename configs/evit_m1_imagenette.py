_base_ = 'evit_m0_imagenette.py'

model = dict(backbone=dict(arch='m1'), head=dict(in_channels=192))
