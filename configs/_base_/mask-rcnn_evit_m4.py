_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', 'detection_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.evit_m4),
    neck=dict(type='EfficientViTFPN', in_channels=[128, 256, 384], num_upsample_levels=2),
)
