# EfficientViT-M5 on your own folders of images; tools/finetune.py fills in data and classes.
_base_ = '_base_/evit_m5_transfer.py'

# Assumed: a short schedule on one GPU with light augmentation, for some thousand images.
model = dict(train_cfg=None)
load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
crop = dict(type='RandomResizedCrop', crop_ratio_range=(0.35, 1.0))
train_pipeline = [load, {**_base_.train_pipeline[1], **crop}, _base_.train_pipeline[2], pack]
test_pipeline = [load, *_base_.test_pipeline[1:]]
tta_pipeline = [load, _base_.views]
train_dataloader = dict(
    dataset=dict(_delete_=True, type='BaseDataset', pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(dataset=dict(_delete_=True, type='BaseDataset', pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.025))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=1, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20)
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
