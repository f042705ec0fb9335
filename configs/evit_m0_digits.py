# EfficientViT-M0 on the single digits of tools/prepare_digits.py, from random weights, for two CPU
# cores.
_base_ = 'evit_m0_in1k.py'

classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
data_root = 'data/digits/classification/'

model = dict(
    head=dict(num_classes=10, loss=dict(_delete_=True, type='CrossEntropyLoss')), train_cfg=None
)
data_preprocessor = dict(num_classes=10)

# The digits are enlarged so that the first stage sees one window of 7x7; no flip, since 2 is not S.
load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
train_pipeline = [
    load,
    dict(type='Rotate', angle=15.0, prob=0.5, random_negative_prob=0.5, pad_val=0),
    dict(type='RandomResizedCrop', scale=112, crop_ratio_range=(0.7, 1.0), backend='pillow'),
    pack,
]
resize = dict(type='Resize', scale=(112, 112), backend='pillow')
test_pipeline = [load, resize, pack]
sizes = [{**resize, 'scale': (side, side)} for side in (112, 96, 128)]
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[sizes, [pack]])]
data = dict(type='CustomDataset', metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(_delete_=True, **data, data_root=data_root + 'train', pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=1,
    dataset=dict(_delete_=True, **data, data_root=data_root + 'val', pipeline=test_pipeline),
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
