_base_ = 'evit_m0_imagenette.py'

model = dict(backbone=dict(arch='m3'), head=dict(in_channels=320))
