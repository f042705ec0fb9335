# Figure 7: 4 query and key channels per head instead of 16.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(attention_cfg=dict(key_channels=4))))
