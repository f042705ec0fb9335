# Figure 7: queries and keys of 4 channels a head instead of 16.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', key_channels=4)
        )
    )
)
