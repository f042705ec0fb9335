# EfficientViT-M5 on other data, 300 epochs from the ImageNet weights.
_base_ = '../evit_m5_in1k.py'

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='evit://m5', prefix='backbone.'))
)

# The released script evaluates fine-tuned models without cropping, on images resized to a square.
test_pipeline = [
    dict(_base_.test_pipeline[0]),
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
tta_pipeline = [
    dict(_base_.tta_pipeline[0]),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic')],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PackInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=32)
val_dataloader = dict(batch_size=32, dataset=dict(split='test', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# The paper's learning rate. The released script scales it to 5e-4 at a batch size of 256. Assumed:
# augmentation, gradient clipping and schedule of ImageNet, the defaults of the released script.
optim_wrapper = dict(optimizer=dict(weight_decay=1e-8))
auto_scale_lr = dict(base_batch_size=256)

# No EMA: with a decay of 0.99996 it needs 25,000 iterations to forget the random head, more than
# training on a small data set has.
custom_hooks = [dict(type='TrainingCurveHook')]
