# Semantic FPN on the digits of tools/prepare_digits.py, from random weights, for two CPU cores.
_base_ = ['_base_/semantic-fpn_evit_m4.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)

classes = ('background', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
palette = [
    (0, 0, 0),
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (250, 190, 212),
]

model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(init_cfg=None),
    neck=dict(out_channels=128, norm_cfg=_base_.batch_norm),
    decode_head=dict(
        in_channels=[128, 128, 128, 128],
        channels=64,
        num_classes=11,
        # Nine pixels of ten are background, and no digit has more than one of a hundred.
        loss_decode=dict(class_weight=[0.1] + [1.0] * 10),
    ),
)

load, load_annotations = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')
resize, pack = dict(type='Resize', scale=(192, 192), keep_ratio=True), dict(type='PackSegInputs')
train_pipeline = [load, load_annotations, resize, pack]  # no flip: 2 is not S
test_pipeline = [load, resize, load_annotations, pack]
tta_pipeline = [
    load,
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=factor) for factor in (0.75, 1.0, 1.25)],
            [load_annotations],
            [pack],
        ],
    ),
]
data = dict(
    type='BaseSegDataset',
    data_root='data/digits/',
    metainfo=dict(classes=classes, palette=palette),
    img_suffix='.png',
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='train', seg_map_path='segments/train'),
        pipeline=train_pipeline,
        **data,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='segments/val'),
        pipeline=test_pipeline,
        **data,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=8, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=15),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
custom_hooks = [dict(type='TrainingCurveHook')]
