# Published: 89.7 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=196))
data_preprocessor = dict(num_classes=196)

dataset_type = 'StanfordCars'
data_root = 'data/stanfordcars'
train_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root, split='train'))
val_dataloader = dict(dataset=dict(type=dataset_type, data_root=data_root))
test_dataloader = val_dataloader
