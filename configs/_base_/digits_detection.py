# The scenes of tools/prepare_digits.py, and a schedule for two CPU cores.
_base_ = ['mmdet::_base_/datasets/coco_detection.py', 'coco_1x.py']

classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
data_root = 'data/digits/'
metainfo = dict(classes=classes)

resize = dict(type='Resize', scale=(192, 192), keep_ratio=True)
load_train, load_annotations, *_, pack_train = _base_.train_pipeline  # no flip: 2 is not S
load_test, *_, pack_test = _base_.test_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
        pipeline=[load_train, load_annotations, resize, pack_train],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        pipeline=[load_test, resize, load_annotations, pack_test],
    ),
)
test_dataloader = val_dataloader
load_tta, views = _base_.tta_pipeline
sizes = [{**resize, 'scale': (side, side)} for side in (192, 160, 224)]
unflipped = views['transforms'][1][:1]  # mmdet asks whether a view is flipped
views = {**views, 'transforms': [sizes, unflipped, *views['transforms'][2:]]}
tta_pipeline = [load_tta, views]
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=8, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10.0))
default_hooks = dict(logger=dict(interval=15), checkpoint=dict(max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)

# Random weights need their batch norm trained and norm layers in neck and heads; two cores, lighter
# ones.
from_scratch = dict(
    backbone=dict(norm_eval=False, init_cfg=None),
    neck=dict(out_channels=128, norm_cfg=dict(type='BN')),
)
