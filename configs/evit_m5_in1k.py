# Published: 77.1 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(backbone=dict(arch='m5'), head=dict(in_channels=384))
