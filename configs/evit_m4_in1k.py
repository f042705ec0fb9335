# EfficientViT-M4 on ImageNet-1K, 300 epochs at 224 pixels; published: 74.3 top-1.
_base_ = [
    'mmpretrain::_base_/datasets/imagenet_bs256_levit_224.py',
    'mmpretrain::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='EfficientViT', arch='m4', window_sizes=(7, 7, 4), out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='EfficientViTClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # Each batch gets one of the two, with equal probability.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

# Pillow reads the images without EXIF rotation, as for the published weights.
train_pipeline = [
    dict(
        type='LoadImageFromFile',
        imdecode_backend='pillow',
        color_type='color_ignore_orientation',
    ),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in _base_.bgr_mean], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=_base_.bgr_mean,
        fill_std=_base_.bgr_std,
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(
        type='LoadImageFromFile',
        imdecode_backend='pillow',
        color_type='color_ignore_orientation',
    ),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    drop_last=True,
    dataset=dict(pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='RepeatAugSampler', num_repeats=3),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Test-time augmentation (tools/test.py --tta): two sizes, with and without a flip.
tta_model = dict(type='AverageClsScoreTTA')
tta_pipeline = [
    dict(
        type='LoadImageFromFile',
        imdecode_backend='pillow',
        color_type='color_ignore_orientation',
    ),
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
                for scale in (256, 288)
            ],
            [dict(type='CenterCrop', crop_size=224)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]

optim_wrapper = dict(
    type='AdaptiveClipOptimWrapper',
    constructor='GroupedOptimWrapperConstructor',
    # The paper's learning rate. The released script scales it to 4e-3 at a batch size of 2048.
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.025),
    clip_grad=dict(clip_factor=0.02),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(attention_biases=dict(decay_mult=0.0)),
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=2048)

# EMA of the buffers too, as in timm's ModelEma, which the released script uses.
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, update_buffers=True),
    dict(type='TrainingCurveHook'),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
