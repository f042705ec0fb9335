# RTMDet on COCO with EfficientViT-M4, which also learns from RTMDet-m; not measured on COCO. The
# method is Channel-wise Knowledge Distillation. Its weight was chosen on the digits.
_base_ = 'rtmdet_evit_m4.py'

model = dict(
    type='DistilledSingleStageDetector',
    teacher='mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py',
    student_channels=[128, 128, 128],
    teacher_channels=192,
    distillation_weight=10.0,
)
