# Figure 7: value ratio 0.4 instead of 1.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', value_ratio=0.4)
        )
    )
)
