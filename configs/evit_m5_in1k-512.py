# EfficientViT-M5 at 512 pixels, 60 epochs from the 224 pixel weights; published: 80.8 top-1.
_base_ = 'evit_m5_in1k-384.py'

size = 512
model = dict(backbone=dict(window_sizes=(16, 16, 8)))

load, crop, *augmentations = _base_.train_pipeline
train_pipeline = [load, {**crop, 'scale': size}, *augmentations]
load, resize, pack = _base_.test_pipeline
resize = {**resize, 'scale': (size, size)}
test_pipeline = [load, resize, pack]
tta_pipeline = [load, dict(type='TestTimeAug', transforms=[[resize], _base_.flips, [pack]])]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=60)
