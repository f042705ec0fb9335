# Figure 7: value ratio 1.2 instead of 1.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', value_ratio=1.2)
        )
    )
)
