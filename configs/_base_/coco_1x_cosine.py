# The 1x schedule of newer light backbones in mmdet 3, such as EMOv2: 12 epochs, 8x2 images, AdamW
# with a cosine from the middle. Not measured on COCO.
_base_ = 'coco_1x.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=0.1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        begin=6,
        end=12,
        T_max=6,
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
