# Table 6, (11): Hardswish instead of ReLU.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(act_cfg=dict(type='HSwish', inplace=True)))
