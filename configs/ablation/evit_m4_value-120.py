# Figure 7: value ratio 1.2 instead of 1.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(value_ratio=1.2))))
