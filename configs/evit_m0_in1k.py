# Published: 63.2 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(backbone=dict(arch='m0'), head=dict(in_channels=192))
