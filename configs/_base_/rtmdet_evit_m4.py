# RTMDet on EfficientViT-M4: RTMDet's head, assigner and losses, with a neck and a head that take no
# longer than the backbone (docs/models.md has the measurements).
model = dict(
    type='RTMDet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        # Of the released weights; RTMDet's own are in BGR.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='EfficientViT',
        arch='m4',
        out_stem=True,
        init_cfg=dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.'),
    ),
    neck=dict(
        type='EfficientViTFPN',
        in_channels=[64, 128, 256, 384],
        out_channels=128,
        num_outs=3,
        num_upsample_levels=0,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU'),
    ),
    bbox_head=dict(
        type='RTMDetSepBNHead',
        num_classes=80,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        share_conv=False,
        use_depthwise=True,
        pred_kernel_size=1,
        with_objectness=False,
        # Box sides are learnt in far fewer epochs than without.
        exp_on_reg=True,
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='SiLU'),
        anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type='DistancePointBBoxCoder'),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(type='DynamicSoftLabelAssigner', topk=13),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type='nms', iou_threshold=0.65),
        max_per_img=100,
    ),
)
