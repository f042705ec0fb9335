import pickle

import mmengine
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
    dict(type='Resize', scale=64),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root='{root}/train', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    dataset=dict(type='CustomDataset', data_root='{root}/val', pipeline=pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3))
auto_scale_lr = dict(base_batch_size=128)
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
    assert 'lr: 1.0000e-03' in output  # --auto-scale-lr: 2e-3 * 64 / 128
    assert (work_dir / 'epoch_1.pth').exists() and (work_dir / 'curves.png').exists()


@pytest.mark.parametrize('flags', [[], ['--tta']], ids=['plain', 'tta'])
def test_test_gives_the_accuracy_of_the_predictions_that_it_dumps(trained, run_tool, flags):
    work_dir, config, _ = trained
    test = ['tools/test.py', config, work_dir / 'epoch_1.pth', '--work-dir', work_dir, *flags]
    result = run_tool(*test, '--out', work_dir / 'predictions.pkl')
    assert result.returncode == 0, result.stdout
    predictions = pickle.loads((work_dir / 'predictions.pkl').read_bytes())
    right = [int(p['gt_label']) == int(p['pred_score'].argmax()) for p in predictions]
    assert len(right) == 360
    result = run_tool(*test, '--out', work_dir / 'metrics.json', '--out-item', 'metrics')
    accuracy = mmengine.load(work_dir / 'metrics.json')['accuracy/top1']
    assert accuracy == pytest.approx(100 * sum(right) / 360)


def test_tta_of_the_digits_averages_the_scores_of_three_sizes(digits, run_tool, tmp_path):
    cfg = save_model('evit_m0_digits', tmp_path / 'model.pth')
    folder = digits / 'classification/val'
    result = run_tool(
        *('tools/test.py', 'configs/evit_m0_digits.py', tmp_path / 'model.pth', '--tta'),
        *('--work-dir', tmp_path, '--out', tmp_path / 'merged.pkl'),
        *('--cfg-options', f'test_dataloader.dataset.data_root={folder}'),
    )
    assert result.returncode == 0, result.stdout
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(tmp_path / 'model.pth')['state_dict'])
    load, resize, pack = cfg.test_pipeline
    for prediction in pickle.loads((tmp_path / 'merged.pkl').read_bytes())[:20]:
        views = []
        for side in (112, 96, 128):
            view = Compose([load, {**resize, 'scale': (side, side)}, pack])
            data = view(dict(img_path=prediction['img_path']))
            with torch.no_grad():
                data = dict(inputs=data['inputs'][None], data_samples=[data['data_samples']])
                views.append(model.test_step(data)[0].pred_score)
        torch.testing.assert_close(prediction['pred_score'], sum(views) / 3, rtol=1e-4, atol=1e-6)
        assert (views[1] - views[2]).abs().max() > 1e-3


def test_every_nth_picture_is_saved(trained, run_tool):
    work_dir, config, _ = trained
    result = run_tool(
        'tools/test.py',
        config,
        work_dir / 'epoch_1.pth',
        '--work-dir',
        work_dir,
        '--show-dir',
        work_dir / 'pictures',
        '--interval',
        '120',
    )
    assert result.returncode == 0, result.stdout
    assert len(list((work_dir / 'pictures').iterdir())) == 3


def test_drawing_with_tta_is_refused(trained, run_tool):
    work_dir, config, _ = trained
    result = run_tool(
        'tools/test.py', config, work_dir / 'epoch_1.pth', '--tta', '--show-dir', work_dir / 'tta'
    )
    assert result.returncode == 1
    assert 'error: ' in result.stdout and 'Traceback' not in result.stdout
    assert "mmpretrain's visualization hook does not support --tta" in result.stdout


def test_evaluation_does_not_change_the_saved_config(trained, run_tool):
    work_dir, config, _ = trained
    kept = work_dir / config.name
    before = kept.read_text()
    for _ in range(2):
        result = run_tool(
            'tools/test.py', kept, work_dir / 'epoch_1.pth', '--tta', '--work-dir', work_dir
        )
        assert result.returncode == 0, result.stdout
    assert kept.read_text() == before


def test_maps_of_images_are_drawn(trained, digits, run_tool, tmp_path):
    work_dir, config, _ = trained
    images = sorted((digits / 'classification/val/4').iterdir())[:3]
    out = tmp_path / 'new' / 'maps.png'
    command = ['tools/analysis/grad_cam.py', config, work_dir / 'epoch_1.pth']
    result = run_tool(*command, *images, '--out', out)
    assert result.returncode == 0, result.stdout
    width, height = Image.open(out).size
    assert (width, height) == (4 * 264, 3 * 288)  # plain and three stages, a row for each image
    # Digits are grey, the maps over them are not.
    red, _, blue = Image.open(out).convert('RGB').split()
    assert red.crop((0, 40, 250, 280)).tobytes() == blue.crop((0, 40, 250, 280)).tobytes()
    assert red.crop((270, 40, 500, 280)).tobytes() != blue.crop((270, 40, 500, 280)).tobytes()

    (tmp_path / 'torn.png').write_bytes(b'torn')
    (tmp_path / 'empty.png').touch()
    for wrong in (
        [*command, tmp_path / 'torn.png'],
        [*command, tmp_path / 'empty.png'],
        [command[0], 'configs/retinanet_evit_m4.py', *command[2:], images[0]],
        [command[0], 'configs/evit_m0_in1k.py', *command[2:], images[0]],
    ):
        result = run_tool(*wrong, '--out', tmp_path / 'none.png')
        assert result.returncode == 1
        assert result.stdout.splitlines()[-1].startswith('error: '), result.stdout
    assert not (tmp_path / 'none.png').exists()
    result = run_tool(*command, images[0], '--out', tmp_path / 'maps.foo')
    assert result.stdout.splitlines()[-1].startswith(f'error: {tmp_path}/maps.foo must end in .png')
