# Semantic FPN on ADE20K with EfficientViT-M4, 40,000 iterations. The paper has no semantic
# segmentation. Assumed: the usual schedule of this head (PVT, PoolFormer).
_base_ = [
    '_base_/semantic-fpn_evit_m4.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_40k.py',
]
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)

model = dict(data_preprocessor=dict(size=_base_.crop_size), decode_head=dict(num_classes=150))
sync_bn = 'torch'  # with several GPUs

optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(attention_biases=dict(decay_mult=0.0))),
)
param_scheduler = [dict(type='PolyLR', power=0.9, end=40000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)  # 8x4 images

custom_hooks = [dict(type='TrainingCurveHook')]
