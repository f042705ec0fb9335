# Table 6, (5): Swin's multi-head attention instead of the cascaded one.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(type='PlainWindowAttention'))))
