_base_ = ['mmseg::_base_/models/fpn_r50.py', 'detection_backbone.py']

batch_norm = dict(type='BN')
model = dict(
    pretrained=None,
    backbone=dict(_delete_=True, **{**_base_.evit_m4, 'norm_eval': False}),
    neck=dict(type='EfficientViTFPN', in_channels=[128, 256, 384], num_upsample_levels=2),
    decode_head=dict(norm_cfg=batch_norm),
)
