# EfficientViT-M5 at 384 pixels, 30 epochs from the 224 pixel weights; published: 79.8 top-1.
_base_ = 'evit_m5_in1k.py'

model = dict(
    backbone=dict(window_sizes=(12, 12, 6)),
    init_cfg=dict(type='Pretrained', checkpoint='evit://m5'),
)

train_pipeline = [
    dict(_base_.train_pipeline[0]),
    dict(_base_.train_pipeline[1], scale=384),
    *_base_.train_pipeline[2:],
]
# The released script evaluates fine-tuned models without cropping, on images resized to a square.
test_pipeline = [
    dict(_base_.test_pipeline[0]),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(_base_.tta_pipeline[0]),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic')],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Assumed: batch size, optimizer and schedule of Swin Transformer's fine-tuning at 384 pixels. The
# paper gives only the number of epochs.
optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=2e-7, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
