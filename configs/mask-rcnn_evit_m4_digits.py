# Mask R-CNN on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/mask-rcnn_evit_m4.py', '_base_/digits_detection.py']

load_annotations = {**_base_.load_annotations, 'with_mask': True}
train_pipeline = [_base_.load_train, load_annotations, _base_.resize, _base_.pack_train]
test_pipeline = [_base_.load_test, _base_.resize, load_annotations, _base_.pack_test]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

roi_extractor = dict(out_channels=128)
model = dict(
    **_base_.from_scratch,
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=roi_extractor,
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
    # No two digits overlap, so a second guess at the same place is none to show.
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200), rcnn=dict(nms=dict(class_agnostic=True))),
)

train_cfg = dict(max_epochs=5)
