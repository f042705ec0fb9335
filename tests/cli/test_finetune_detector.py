import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmpretrain import get_model

from mmevit.checkpoint import read_checkpoint
from mmevit.deploy import fold


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'm0.pth'
    torch.save(dict(state_dict=get_model('efficientvit-m0_8xb256_in1k').state_dict()), path)
    return path


@pytest.fixture(scope='module')
def scenes(digits, tmp_path_factory):
    """Scenes with digits and YOLO labels, 12 for training and 4 for validation."""
    root = tmp_path_factory.mktemp('own') / 'scenes'
    content = json.loads((digits / 'annotations/instances_train.json').read_text())
    for split, images in (('train', content['images'][:12]), ('val', content['images'][12:])):
        for part in ('images', 'labels'):
            (root / part / split).mkdir(parents=True)
        for image in images:
            shutil.copy(digits / 'train' / image['file_name'], root / 'images' / split)
            lines = [
                f'{each["category_id"] - 1} {x + w / 2} {y + h / 2} {w} {h}'
                for each in content['annotations']
                if each['image_id'] == image['id']
                for x, y, w, h in [np.array(each['bbox']) / image['width']]
            ]
            name = Path(image['file_name']).with_suffix('.txt').name
            (root / 'labels' / split / name).write_text('\n'.join(lines))
    names = [category['name'] for category in content['categories']]
    settings = dict(train='images/train', val='images/val', names=names)
    (root / 'data.yaml').write_text(yaml.safe_dump(settings))
    return root


@pytest.fixture(scope='module')
def finetuned(scenes, weights, tmp_path_factory, run_tool):
    """The work directory and the output of a training from weights."""
    work_dir, before = tmp_path_factory.mktemp('work'), sorted(scenes.rglob('*'))
    result = run_tool(
        *('tools/finetune.py', scenes, '--weights', weights, '--work-dir', work_dir),
        *('--image-size', '96', '128', '--epochs', '1', '--batch-size', '4', '--no-flip'),
        *('--cfg-options', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0'),
        *('test_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
        *(f'{split}_dataloader.persistent_workers=False' for split in ('val', 'test')),
    )
    assert result.returncode == 0, result.stdout
    assert sorted(scenes.rglob('*')) == before
    return work_dir, result.stdout


def test_config_holds_the_data_and_the_network_of_the_weights(finetuned, weights):
    work_dir, _ = finetuned
    cfg = Config.fromfile(work_dir / 'rtmdet_evit_m0_finetune.py')
    assert cfg.model.backbone.init_cfg.checkpoint == f'evit://{weights}'
    assert cfg.model.bbox_head.num_classes == 10
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (1, 4)
    sizes = {tuple(step.scale) for step in cfg.test_dataloader.dataset.pipeline if 'scale' in step}
    assert sizes == {(128, 96)}
    assert 'RandomFlip' not in cfg.pretty_text
    ann_file = Path(cfg.train_dataloader.dataset.ann_file)
    assert ann_file == work_dir / 'annotations/instances_train.json'
    assert len(json.loads(ann_file.read_text())['images']) == 12


def test_backbone_starts_from_the_weights(finetuned, weights):
    trained = read_checkpoint(finetuned[0] / 'epoch_1.pth')['state_dict']
    name = 'backbone.stem.0.conv.weight'
    before = read_checkpoint(weights)['state_dict'][name]
    assert 0 < (trained[name] - before).norm() / before.norm() < 0.2


def test_best_checkpoint_is_evaluated_drawn_and_named_with_the_next_commands(finetuned, run_tool):
    work_dir, output = finetuned
    assert '| images | 12 | 4 |' in output
    for name in ('precision_recall.png', 'confusions.png', 'curves.png', 'detections.bbox.json'):
        assert (work_dir / name).stat().st_size > 100
    (checkpoint,) = work_dir.glob('best_*.pth')
    config = work_dir / 'rtmdet_evit_m0_finetune.py'
    assert f'mmevit infer {config} {checkpoint} IMAGE_OR_FOLDER' in output
    result = run_tool('tools/test.py', config, checkpoint, '--work-dir', work_dir / 'again')
    assert result.returncode == 0, result.stdout
    reported = [
        text.rpartition('coco/bbox_mAP: ')[2].split()[0] for text in (output, result.stdout)
    ]
    assert reported[0] == reported[1]


def test_training_resumes_as_printed(finetuned, run_tool, tmp_path):
    work_dir, output = finetuned
    command = output.split('To resume:')[1].split()
    assert command[:2] == ['mmevit', 'train'] and command[-1] == 'train_cfg.max_epochs=2'
    copy = shutil.copytree(work_dir, tmp_path / 'copy')
    (copy / 'last_checkpoint').write_text(str(copy / 'epoch_1.pth'))
    result = run_tool('tools/train.py', *command[2:], '--work-dir', copy)
    assert result.returncode == 0, result.stdout
    assert 'Epoch(val) [2]' in result.stdout and 'Epoch(val) [1]' not in result.stdout


def test_photographs_are_trained_on_and_tested(bccd, run_tool, tmp_path):
    result = run_tool(
        *('tools/finetune.py', bccd, '--model', 'rtmdet_evit_m0', '--weights', 'none'),
        *('--epochs', '1', '--image-size', '96', '128', '--work-dir', tmp_path, '--amp'),
    )
    assert result.returncode == 0, result.stdout
    assert '| images | 205 | 87 | 72 |' in result.stdout
    assert 'on instances_test.json; each class is above' in result.stdout


def test_outlines_train_masks(scenes, weights, run_tool, tmp_path):
    data = shutil.copytree(scenes, tmp_path / 'outlined')
    for path in data.glob('labels/*/*.txt'):
        lines = [line.split() for line in path.read_text().splitlines()]
        outlines = [
            f'{label} {x} {y - h / 2} {x + w / 2} {y + h / 2} {x - w / 2} {y + h / 2}'
            for label, *box in lines
            for x, y, w, h in [map(float, box)]
        ]
        path.write_text('\n'.join(outlines))
    result = run_tool(
        *('tools/finetune.py', data, '--weights', weights, '--work-dir', tmp_path / 'work'),
        *('--image-size', '96', '--epochs', '1', '--batch-size', '4', '--cfg-options'),
        'model.test_cfg.score_thr=0.001',
    )
    assert result.returncode == 0, result.stdout
    assert 'Task: instance-segmentation' in result.stdout
    assert ' mask AP 0.' in result.stdout.split('The results:')[1]
    cfg = Config.fromfile(tmp_path / 'work/rtmdet-ins_evit_m0_finetune.py')
    assert (cfg.model.backbone.arch, cfg.model.neck.in_channels) == ('m0', [32, 64, 128, 192])
    assert all(
        step.with_mask
        for split in ('train', 'val', 'test')
        for step in cfg[f'{split}_dataloader'].dataset.pipeline
        if step.type == 'LoadAnnotations'
    )


@pytest.mark.slow
def test_time_that_is_asked_for_is_kept(scenes, run_tool, tmp_path):
    result = run_tool(
        *('tools/finetune.py', scenes, '--model', 'rtmdet_evit_m0'),
        *('--weights', 'none', '--minutes', '2', '--work-dir', tmp_path),
    )
    assert result.returncode == 0, result.stdout
    cfg = Config.fromfile(tmp_path / 'rtmdet_evit_m0_finetune.py')
    assert cfg.train_cfg.max_epochs > 1


def test_missing_weights_are_reported_before_the_speed_is_measured(scenes, run_tool, tmp_path):
    result = run_tool(
        *('tools/finetune.py', scenes, '--model', 'rtmdet_evit_m0', '--minutes', '2'),
        *('--weights', 'hf://me/missing', '--work-dir', tmp_path),
    )
    assert result.returncode == 1
    assert 'hf://me/missing' in result.stdout.splitlines()[-1]
    assert 'ms for a training image' not in result.stdout


def test_wrong_requests_are_refused_in_one_sentence(digits, scenes, refuse, tmp_path):
    def refused(*command):
        return refuse('finetune', '--work-dir', tmp_path / 'work', *command)

    folders = digits / 'classification'
    assert 'contains no labels for detection' in refused(folders, '--task', 'detection')
    assert '--model is not for class folders' in refused(folders, '--model', 'rtmdet_evit_m0')
    sentence = refused(scenes, '--model', 'evit_m0_in1k')
    assert 'is a config of mmpretrain' in sentence
    assert 'rtmdet_evit_m9 is missing' in refused(scenes, '--model', 'rtmdet_evit_m9')
    assert 'neither a file nor one of the names' in refused(scenes, '--weights', 'm9.pth')
    folded = fold(get_model('efficientvit-m0_8xb256_in1k')).state_dict()
    torch.save(dict(state_dict=folded), tmp_path / 'folded.pth')
    assert 'not folded' in refused(scenes, '--weights', tmp_path / 'folded.pth')
    assert 'is inside the data' in refused(scenes, '--work-dir', scenes / 'work')
    task = ('--task', 'instance-segmentation')
    assert 'has objects without masks' in refused(scenes, *task)
    assert 'for a single process' in refused(scenes, '--minutes', '3', '--launcher', 'slurm')
    assert not list((tmp_path / 'work').glob('*.p*'))
