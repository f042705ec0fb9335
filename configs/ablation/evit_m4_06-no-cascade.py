# Table 6, (6): no cascade between heads.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', cascade=False)
        )
    )
)
