# Published: 97.1 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=102))
data_preprocessor = dict(num_classes=102)

dataset_type = 'Flowers102'
data_root = 'data/flowers102'
# An epoch has each training image 100 times, as in the released loader. Assumed: the published
# figure is of the 2,040 images of train and val together; the paper does not name the split.
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=100,
        dataset=dict(
            type=dataset_type,
            data_root=data_root,
            split='trainval',
            pipeline=_base_.train_pipeline,
        ),
    )
)
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
