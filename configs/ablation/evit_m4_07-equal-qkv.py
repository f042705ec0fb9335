# Table 6, (7): queries and keys as wide as values.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(key_channels=None))))
