# Published: 92.0 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=37))
data_preprocessor = dict(num_classes=37)

dataset_type = 'OxfordIIITPet'
data_root = 'data/oxford-iiit-pet'
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='trainval'))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
