# Figure 7: 4 query and key channels per head instead of 16.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', key_channels=4)
        )
    )
)
