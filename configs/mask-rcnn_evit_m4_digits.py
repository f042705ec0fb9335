# Mask R-CNN on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/mask-rcnn_evit_m4.py', '_base_/digits_detection.py']

# No flip: a flipped 2 looks like an S.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

model = dict(
    # Trained from random weights: batch norm is trained, and neck and heads have norm layers. Fewer
    # channels than on COCO train faster.
    backbone=dict(norm_eval=False, init_cfg=None),
    neck=dict(out_channels=128, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(
            in_channels=128,
            conv_out_channels=64,
            num_convs=2,
            num_classes=10,
            norm_cfg=dict(type='GN', num_groups=16),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))
    ),
    # Digits do not overlap: keep one class per place.
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(nms=dict(class_agnostic=True))),
)

train_cfg = dict(max_epochs=5)
