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
    # One of the two for each batch, with equal chances.
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)

# The base has the recipe's augmentations. Images are read by Pillow and not turned by their EXIF
# tags, as the published weights were trained and evaluated.
load = dict(
    type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'
)
train_pipeline = [load, *_base_.train_pipeline[1:]]
test_pipeline = [load, *_base_.test_pipeline[1:]]
train_dataloader = dict(
    drop_last=True,
    dataset=dict(pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='RepeatAugSampler', num_repeats=3),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# By tools/test.py --tta: two sizes, each also flipped.
tta_model = dict(type='AverageClsScoreTTA')
resize, crop, pack = test_pipeline[1:]
flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
sizes = [resize, {**resize, 'scale': 288}]
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[sizes, [crop], flips, [pack]])]

optim_wrapper = dict(
    type='AdaptiveClipOptimWrapper',
    # The paper's rate. The released script scales it by the batch of 2048 to 4e-3.
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

# Buffers are averaged too, as timm's ModelEma did for the recipe.
custom_hooks = [
    dict(type='EMAHook', momentum=4e-5, update_buffers=True),
    dict(type='TrainingCurveHook'),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='accuracy/top1'))
