# BCCD, photographs of blood cells with boxes in Pascal VOC format; for two CPU cores.
_base_ = 'finetune_detection.py'

dataset_type = 'XMLDataset'
data_root = 'data/bccd/'
data_source = 'https://github.com/Shenggan/BCCD_Dataset (its folder BCCD)'
metainfo = dict(classes=('Platelets', 'RBC', 'WBC'))

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(640, 480), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    # The metric takes the instances, for want of a file in COCO format.
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=metainfo,
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Main/val.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(
    num_workers=1, dataset=dict(val_dataloader['dataset'], ann_file='ImageSets/Main/test.txt')
)
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator
