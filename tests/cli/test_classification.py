import pickle
import re

import numpy as np
import pytest
import torch
from making_models import build_model, save_model
from mmengine.dataset import Compose
from PIL import Image

CONFIG = """
_base_ = ['mmpretrain::_base_/default_runtime.py']
custom_imports = dict(imports=['mmevit'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=192),
)
data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=32),
    dict(type='PackInputs'),
]
# Every twelfth image, since they are sorted by class.
dataset = dict(type='CustomDataset', pipeline=pipeline, indices=list(range(0, 360, 12)))
train_dataloader = dict(
    batch_size=15,
    num_workers=0,
    dataset=dict(data_root='{root}/train', **dataset),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=15,
    num_workers=0,
    dataset=dict(data_root='{root}/val', **dataset),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
auto_scale_lr = dict(base_batch_size=30)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='TrainingCurveHook')]
"""


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory, run_tool):
    work_dir = tmp_path_factory.mktemp('classification')
    config = tmp_path_factory.mktemp('configs') / 'classifier.py'
    config.write_text(CONFIG.replace('{root}', str(digits / 'classification')))
    result = run_tool('tools/train.py', config, '--work-dir', work_dir, '--auto-scale-lr')
    assert result.returncode == 0, result.stdout
    return work_dir, config, result.stdout


def test_train_runs_an_mmpretrain_config(trained):
    work_dir, _, output = trained
    assert 'accuracy/top1' in output
    assert 'lr: 1.0000e-03' in output  # --auto-scale-lr: 2e-3 * 15 / 30
    assert (work_dir / 'epoch_1.pth').exists() and (work_dir / 'curves.png').exists()


@pytest.mark.parametrize('is_tta', [False, True], ids=['plain', 'tta'])
def test_test_prints_the_accuracy_of_the_predictions_that_it_dumps(trained, run_tool, is_tta):
    work_dir, config, _ = trained
    # The config that training has saved is not changed.
    kept = work_dir / config.name
    before = kept.read_text()
    pictures = ('--show-dir', work_dir / 'pictures', '--interval', '10')
    result = run_tool(
        *('tools/test.py', kept, work_dir / 'epoch_1.pth', '--work-dir', work_dir),
        *('--out', work_dir / 'predictions.pkl', *(['--tta'] if is_tta else pictures)),
    )
    assert result.returncode == 0, result.stdout
    predictions = pickle.loads((work_dir / 'predictions.pkl').read_bytes())
    right = [int(p['gt_label']) == int(p['pred_score'].argmax()) for p in predictions]
    assert len(right) == 30
    accuracy = float(re.search(r'accuracy/top1: ([\d.]+)', result.stdout)[1])
    assert accuracy == pytest.approx(100 * sum(right) / 30, abs=1e-3)
    assert kept.read_text() == before
    if not is_tta:
        assert len(list((work_dir / 'pictures').iterdir())) == 3


def test_tta_of_the_digits_averages_the_scores_of_three_sizes(digits, run_tool, tmp_path):
    cfg = save_model('evit_m0_digits', tmp_path / 'model.pth')
    folder = digits / 'classification/val'
    result = run_tool(
        *('tools/test.py', 'configs/evit_m0_digits.py', tmp_path / 'model.pth', '--tta'),
        *('--work-dir', tmp_path, '--out', tmp_path / 'merged.pkl'),
        *('--cfg-options', f'test_dataloader.dataset.data_root={folder}'),
        'test_dataloader.dataset.indices=5',
    )
    assert result.returncode == 0, result.stdout
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(tmp_path / 'model.pth')['state_dict'])
    load, resize, pack = cfg.test_pipeline
    merged = pickle.loads((tmp_path / 'merged.pkl').read_bytes())
    assert len(merged) == 5
    for prediction in merged:
        views = []
        for side in (112, 96, 128):
            view = Compose([load, {**resize, 'scale': (side, side)}, pack])
            data = view(dict(img_path=prediction['img_path']))
            with torch.no_grad():
                data = dict(inputs=data['inputs'][None], data_samples=[data['data_samples']])
                views.append(model.test_step(data)[0].pred_score)
        torch.testing.assert_close(prediction['pred_score'], sum(views) / 3, rtol=1e-4, atol=1e-6)
        assert (views[1] - views[2]).abs().max() > 1e-3


def test_drawing_with_tta_is_refused(trained, refuse):
    work_dir, config, _ = trained
    sentence = refuse('test', config, work_dir / 'epoch_1.pth', '--tta', '--show-dir', work_dir)
    assert "mmpretrain's visualization hook does not support --tta" in sentence


def test_maps_of_images_are_drawn(classifier, digits, run_tool, refuse, tmp_path):
    images = sorted((digits / 'classification/val/4').iterdir())[:3]
    out = tmp_path / 'new' / 'maps.png'
    result = run_tool('tools/analysis/grad_cam.py', *classifier, *images, '--out', out)
    assert result.returncode == 0, result.stdout
    width, height = Image.open(out).size
    assert (width, height) == (4 * 264, 3 * 288)  # plain and three stages, a row for each image
    # Digits are grey, the maps over them are not.
    red, _, blue = (np.asarray(band, int) for band in Image.open(out).convert('RGB').split())
    difference = abs(red - blue)
    assert difference[40:280, :250].max() <= 1 < difference[40:280, 270:500].max()

    config, checkpoint = classifier
    (tmp_path / 'corrupt.png').write_bytes(b'corrupt')
    (tmp_path / 'empty.png').touch()
    none = tmp_path / 'none.png'
    for arguments, message in (
        ((config, checkpoint, tmp_path / 'corrupt.png'), 'Cannot read the image'),
        ((config, checkpoint, tmp_path / 'empty.png'), 'Cannot read the image'),
        (('configs/retinanet_evit_m4.py', checkpoint, images[0]), 'not an EfficientViT classifier'),
        (('configs/evit_m0_in1k.py', checkpoint, images[0]), 'not fit'),
    ):
        assert message in refuse('analysis.grad_cam', *arguments, '--out', none)
    assert not none.exists()
    sentence = refuse('analysis.grad_cam', *classifier, images[0], '--out', tmp_path / 'maps.foo')
    assert f'{tmp_path}/maps.foo must end in .png' in sentence
