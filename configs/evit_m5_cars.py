# Published: 89.7 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=196))
data_preprocessor = dict(num_classes=196)
data = dict(type='StanfordCars', data_root='data/stanfordcars')
train_dataloader = dict(dataset=dict(**data, split='train'))
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
