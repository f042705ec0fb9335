# Figure 7: values 0.8 times as wide as a head's split.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', value_ratio=0.8)
        )
    )
)
