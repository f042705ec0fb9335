# RetinaNet 1x on COCO with EfficientViT-M4; published: 32.7 box AP.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)

model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='m4',
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.'),
    ),
    neck=dict(
        type='EfficientViTFPN', in_channels=[128, 256, 384], start_level=0, num_upsample_levels=1
    ),
)

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(attention_biases=dict(decay_mult=0.0))),
)

custom_hooks = [dict(type='TrainingCurveHook')]
