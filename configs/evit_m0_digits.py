# EfficientViT-M0 on the single digits of tools/prepare_digits.py, from random weights, for two CPU
# cores.
_base_ = 'evit_m0_in1k.py'

dataset_type = 'CustomDataset'
data_root = 'data/digits/classification/'
metainfo = dict(classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'))

model = dict(
    head=dict(num_classes=10, loss=dict(_delete_=True, type='CrossEntropyLoss')), train_cfg=None
)
data_preprocessor = dict(num_classes=10)

# Digits are enlarged so that the first stage has one window of 7x7. No flip: a flipped 2 looks like
# an S.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Rotate', angle=15.0, prob=0.5, random_negative_prob=0.5, pad_val=0),
    dict(type='RandomResizedCrop', scale=112, crop_ratio_range=(0.7, 1.0), backend='pillow'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(112, 112), backend='pillow'),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, backend='pillow')
                for scale in ((112, 112), (96, 96), (128, 128))
            ],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root + 'train',
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root + 'val',
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=12, val_interval=2)
auto_scale_lr = dict(base_batch_size=32)
custom_hooks = [
    dict(type='EMAHook', momentum=0.02, update_buffers=True),
    dict(type='TrainingCurveHook'),
]
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(max_keep_ckpts=1))
