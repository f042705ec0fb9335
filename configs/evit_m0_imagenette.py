# EfficientViT-M0 on Imagenette, ten classes of ImageNet, from random weights; for two CPU cores.
_base_ = 'evit_m0_in1k.py'

dataset_type = 'CustomDataset'
data_root = 'data/imagenette/'
data_source = 'https://github.com/thunderInfy/imagenette'
metainfo = dict(
    classes=(
        'tench',
        'English springer',
        'cassette player',
        'chain saw',
        'church',
        'French horn',
        'garbage truck',
        'gas pump',
        'golf ball',
        'parachute',
    )
)

# Windows that fill the maps of 10x10, 5x5 and 3x3 without padding.
model = dict(backbone=dict(window_sizes=(5, 5, 3)), head=dict(num_classes=10), train_cfg=None)
data_preprocessor = dict(num_classes=10)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=160, crop_ratio_range=(0.25, 1.0), backend='cv2'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=182, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=160),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='ResizeEdge',
                    scale=scale,
                    edge='short',
                    backend='pillow',
                    interpolation='bicubic',
                )
                for scale in (182, 204)
            ],
            [dict(type='CenterCrop', crop_size=160)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=64,
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
    batch_size=64,
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

# Assumed, as all values here: a network from random weights, with few images.
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, end=3, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=3, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30, val_interval=5)
auto_scale_lr = dict(base_batch_size=64)
custom_hooks = [
    dict(type='EMAHook', momentum=0.005, update_buffers=True),
    dict(type='ChannelsLastHook'),
    dict(type='TrainingCurveHook'),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
