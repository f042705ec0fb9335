# Figure 7: value ratio 0.6 instead of 1.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(value_ratio=0.6))))
