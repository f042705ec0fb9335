_base_ = 'evit_m0_imagenette.py'

model = dict(backbone=dict(arch='m4'), head=dict(in_channels=384))
