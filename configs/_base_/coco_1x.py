# Schedule and runtime of the COCO detectors: 12 epochs, 8x2 images.
_base_ = [
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    'detection_tta.py',
]
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)

optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(attention_biases=dict(decay_mult=0.0))),
)

custom_hooks = [dict(type='TrainingCurveHook')]
