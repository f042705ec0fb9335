# Published: 68.4 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(backbone=dict(arch='m1'), head=dict(in_channels=192))
