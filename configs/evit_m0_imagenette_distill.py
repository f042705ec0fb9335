# EfficientViT-M0 on Imagenette, which also learns from EfficientNet-Lite0 (docs/photographs.md).
_base_ = 'evit_m0_imagenette.py'

model = dict(
    type='DistilledImageClassifier',
    teacher=dict(
        type='TimmClassifier',
        model_name='efficientnet_lite0',
        num_classes=10,
        init_cfg=dict(type='Pretrained', checkpoint='data/efficientnet_lite0_imagenette.pth'),
    ),
    distillation_type='soft',
    distillation_weight=0.5,
    temperature=2.0,
    head=dict(distillation=True),
)
