# Published: 97.1 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=102))
data_preprocessor = dict(num_classes=102)
data = dict(type='Flowers102', data_root='data/flowers102')
# The released loader lists each of these images 100 times an epoch; here it is once.
train_dataloader = dict(dataset=dict(**data, split='trainval'))
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader
