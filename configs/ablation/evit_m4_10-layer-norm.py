# Table 6, (10): layer normalization over channels instead of batch norm.
_base_ = '../evit_m4_in1k.py'

model = dict(backbone=dict(norm_cfg=dict(type='mmpretrain.LN2d')))
