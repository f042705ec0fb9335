# EfficientViT-M4 with a teacher, 1000 epochs; published: 77.1 top-1.
_base_ = 'evit_m4_in1k.py'

model = dict(
    type='DistilledImageClassifier',
    teacher=dict(type='TimmClassifier', model_name='regnety_160.deit_in1k', pretrained=True),
    distillation_type='hard',
    distillation_weight=0.5,
    head=dict(distillation=True),
)
train_cfg = dict(max_epochs=1000)
