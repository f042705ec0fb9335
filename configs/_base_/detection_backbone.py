# The backbone of the detectors: the authors' weights, their batch norm frozen.
evit_m4 = dict(
    type='EfficientViT',
    arch='m4',
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='evit://m4', prefix='backbone.'),
)
