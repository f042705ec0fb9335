# EfficientViT-M5 at 384 pixels, 30 epochs from the 224 pixel weights; published: 79.8 top-1.
_base_ = 'evit_m5_in1k.py'

size = 384
model = dict(
    backbone=dict(window_sizes=(12, 12, 6)),
    init_cfg=dict(type='Pretrained', checkpoint='evit://m5'),
)

load, crop, *augmentations = _base_.train_pipeline
train_pipeline = [load, {**crop, 'scale': size}, *augmentations]
# Fine-tuned models of the released script see the whole image, made square.
resize = dict(type='Resize', scale=(size, size), backend='pillow', interpolation='bicubic')
pack = dict(type='PackInputs')
test_pipeline = [load, resize, pack]
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[[resize], _base_.flips, [pack]])]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Assumed, since the paper gives the number of epochs alone: batch size, optimizer and schedule of
# Swin Transformer's fine-tuning at 384 pixels.
optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8))
warm_up, cosine = _base_.param_scheduler
param_scheduler = [warm_up, {**cosine, 'eta_min': 2e-7}]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
