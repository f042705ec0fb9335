# Published: 70.8 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(backbone=dict(arch='m2'), head=dict(in_channels=224))
