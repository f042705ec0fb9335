# Table 6, (6): heads that do not see the output of the head before.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        block_cfg=dict(
            type='SandwichBlock', attention_cfg=dict(type='CascadedGroupAttention', cascade=False)
        )
    )
)
