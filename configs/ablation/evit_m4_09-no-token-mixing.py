# Table 6, (9): no depthwise convolutions before the FFNs.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(block_cfg=dict(token_mixing=False)))
