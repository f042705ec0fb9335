# Published: 98.0 top-1.
_base_ = '_base_/evit_m5_transfer.py'

model = dict(head=dict(num_classes=10))
# These images are no files but arrays, of RGB.
data_preprocessor = dict(num_classes=10, to_rgb=False)
crop, flip, augment, erase, pack = _base_.train_pipeline[1:]
augment = {**augment, 'hparams': {**augment['hparams'], 'pad_val': [124, 116, 104]}}
erase = {**erase, 'fill_color': erase['fill_color'][::-1], 'fill_std': erase['fill_std'][::-1]}
train_pipeline = [crop, flip, augment, erase, pack]
test_pipeline = _base_.test_pipeline[1:]
tta_pipeline = _base_.tta_pipeline[1:]
data = dict(type='CIFAR10', data_root='data/cifar10')
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**data, pipeline=test_pipeline))
test_dataloader = val_dataloader
