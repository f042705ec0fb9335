# Table 6, (6): no cascade between heads.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(cascade=False))))
