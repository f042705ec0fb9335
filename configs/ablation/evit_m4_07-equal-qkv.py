# Table 6, (7): queries and keys as wide as values.
_base_ = '../evit_m4_in1k.py'

attention = dict(type='CascadedGroupAttention', key_channels=None)
model = dict(backbone=dict(block_cfg=dict(type='SandwichBlock', attention_cfg=attention)))
