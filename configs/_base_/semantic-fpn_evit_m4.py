_base_ = 'mmseg::_base_/models/fpn_r50.py'

norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.'),
    ),
    neck=dict(type='EfficientViTFPN', in_channels=[128, 256, 384], num_upsample_levels=2),
    decode_head=dict(norm_cfg=norm_cfg),
)
