_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.'),
    ),
    neck=dict(type='EfficientViTFPN', in_channels=[128, 256, 384], num_upsample_levels=2),
)
