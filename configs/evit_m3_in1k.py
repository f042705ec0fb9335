# Published: 73.4 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(backbone=dict(arch='m3'), head=dict(in_channels=320))
