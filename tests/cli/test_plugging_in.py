"""A detector that somebody trains already, changed by the lines of docs/plug_in.md alone."""

import re

import pytest
from mmengine.config import Config
from plug_in_table import NECKS, write_config

ATSS = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
COMMON = """
classes = ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
resize = dict(type='Resize', scale=(192, 192), keep_ratio=True)
load, load_annotations, *_, pack = _base_.train_pipeline
data = dict(data_root='data/digits/', metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=[load, load_annotations, resize, pack],
        **data,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=[load, resize, load_annotations, _base_.test_pipeline[-1]],
        **data,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/digits/annotations/instances_val.json')
test_evaluator = val_evaluator
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=50)]
randomness = dict(seed=0)
"""
EXISTING = {
    ATSS: """
model = dict(bbox_head=dict(num_classes=10))
train_cfg = dict(max_epochs=3)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
""",
    RTMDET: """
model = dict(bbox_head=dict(num_classes=10))
train_cfg = dict(max_epochs=3, val_interval=1, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=10.0))
custom_hooks = [_base_.custom_hooks[0]]  # averaged weights
""",
}


@pytest.mark.slow
@pytest.mark.parametrize('stock', [ATSS, RTMDET], ids=['atss', 'rtmdet'])
def test_average_precision_doubles_in_three_epochs(stock, tmp_path, run_tool):
    root = tmp_path / 'data/digits'
    assert run_tool('tools/prepare_digits.py', root).returncode == 0
    existing = tmp_path / 'existing.py'
    existing.write_text(
        f"_base_ = '{stock}'\n{COMMON}{EXISTING[stock]}".replace('data/digits', str(root))
    )
    changed = write_config(tmp_path / 'changed.py', 'existing.py', NECKS[stock])
    before, after = (Config.fromfile(path).to_dict() for path in (existing, changed))
    for part in ('backbone', 'neck'):
        assert before['model'].pop(part) != after['model'].pop(part)
    del after['custom_imports']
    assert before == after

    result = run_tool('tools/train.py', changed, '--work-dir', tmp_path / 'run', timeout=1800)
    assert result.returncode == 0, result.stdout
    first, *_, last = map(float, re.findall(r'coco/bbox_mAP: (\d\.\d+)', result.stdout))
    assert last > max(2 * first, 0.05)
