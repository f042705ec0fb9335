# Table 6, (2): Swin's block instead of the sandwich; depths as in the paper.
_base_ = '../evit_m4_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=(128, 256, 384),
            depths=(2, 2, 3),
            num_heads=(4, 4, 4),
            kernel_sizes=(7, 5, 3, 3),
        ),
        block_cfg=dict(type='SwinLayoutBlock'),
    )
)
