# EfficientViT-M5 at 512 pixels, 60 epochs from the 224 pixel weights; published: 80.8 top-1.
_base_ = 'evit_m5_in1k-384.py'

model = dict(backbone=dict(window_sizes=(16, 16, 8)))

train_pipeline = [
    dict(_base_.train_pipeline[0]),
    dict(_base_.train_pipeline[1], scale=512),
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    dict(_base_.test_pipeline[0]),
    dict(type='Resize', scale=(512, 512), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(_base_.tta_pipeline[0]),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(512, 512), backend='pillow', interpolation='bicubic')],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=60)
