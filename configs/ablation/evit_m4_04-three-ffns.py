# Table 6, (4): three FFNs before and after the attention, in fewer blocks.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(128, 256, 384),
            depths=(1, 1, 1),
            num_heads=(4, 4, 4),
            kernel_sizes=(7, 5, 3, 3),
        ),
        block_cfg=dict(num_ffns=3),
    )
)
