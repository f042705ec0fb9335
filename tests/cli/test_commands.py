import json
import pickle
import shutil
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import mmengine
import pytest
import torch
import torchvision
from mmengine.config import Config
from mmengine.hub import get_config
from PIL import Image, ImageOps
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from running_tools import ROOT, free_port

from mmevit.checkpoint import read_checkpoint
from mmevit.cli import infer, train
from mmevit.cli.test import enable_tta
from mmevit.utils.errors import ConfigError

CONFIG = 'configs/retinanet_evit_m4_digits.py'


def data_options(root):
    evaluators = [f'{s}_evaluator.ann_file={root}/annotations/instances_val.json' for s in SPLITS]
    return [
        f'train_dataloader.dataset.data_root={root}',
        *(f'{split}_dataloader.dataset.data_root={root}' for split in SPLITS),
        *evaluators,
        # One image of eight is corrupt.
        'default_hooks.unreadable_images.max_share=0.2',
    ]


SPLITS = ('val', 'test')


@pytest.fixture(scope='module')
def trained(digits, detector_config, tmp_path_factory, run_tool):
    """A work directory after two epochs of four iterations, in which an image is corrupt."""
    root = tmp_path_factory.mktemp('corrupt') / 'digits'
    shutil.copytree(digits, root, ignore=shutil.ignore_patterns('classification', 'segments'))
    (root / 'train/000003.png').write_bytes(b'corrupt')
    (root / 'val/000004.png').write_bytes(b'')
    work_dir = tmp_path_factory.mktemp('work')
    config = tmp_path_factory.mktemp('configs') / 'averaged.py'
    hooks = "custom_hooks = [dict(type='TrainingCurveHook'), dict(type='EMAHook')]"
    config.write_text(f'_base_ = {str(detector_config)!r}\n{hooks}\n')
    outputs = []
    for epochs, flags in ((1, []), (2, ['--resume'])):
        options = ['--cfg-options', *data_options(root), f'train_cfg.max_epochs={epochs}']
        result = run_tool('tools/train.py', config, '--work-dir', work_dir, *flags, *options)
        assert result.returncode == 0, result.stdout
        outputs.append(result.stdout)
    return work_dir, root, *outputs


def test_training_leaves_checkpoint_log_and_curve(trained):
    work_dir, _, _, _ = trained
    checkpoint = read_checkpoint((work_dir / 'last_checkpoint').read_text())
    assert checkpoint['meta']['epoch'] == 2
    assert len(list(work_dir.glob('*/*.log'))) == 2
    assert Image.open(work_dir / 'curves.png').size == (1440, 540)


def test_resuming_restores_averages_optimizer_and_log(trained):
    work_dir, _, first, second = trained
    assert 'Epoch(train) [1]' in first and 'Epoch(train) [2]' not in first
    assert 'Epoch(train) [1]' not in second and 'resumed epoch: 1' in second
    checkpoint = read_checkpoint((work_dir / 'last_checkpoint').read_text())
    assert checkpoint['ema_state_dict']['steps'] == 8
    assert {int(state['step']) for state in checkpoint['optimizer']['state'].values()} == {8}
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 8


def test_corrupt_images_do_not_end_training_and_are_named(trained):
    _, root, first, second = trained
    assert f'{root}/train/000003.png cannot be read and is skipped' in first
    assert 'Epoch(train) [1]  unreadable_images: 1 of 16' in first
    assert f'{root}/val/000004.png cannot be read and is replaced by a blank image' in first
    for output in (first, second):
        # A metric, or where nothing is found and mmdet has none, a line of its own.
        assert ' unreadable_images: 1' in output.split('is replaced by a blank image')[1]


@pytest.fixture(scope='module')
def evaluate(trained, digits, detector_config, run_tool):
    """Run tools/test.py on the trained detector and whole data, or on other data."""
    work_dir, _, _, _ = trained
    own_checkpoint = (work_dir / 'last_checkpoint').read_text()

    def run(*flags, checkpoint=own_checkpoint, root=digits, options=()):
        test = ['tools/test.py', detector_config, checkpoint, '--work-dir', work_dir, *flags]
        result = run_tool(*test, '--cfg-options', *data_options(root), *options)
        assert result.returncode == 0, result.stdout
        return result.stdout

    return run


@pytest.fixture(scope='module')
def predictions(evaluate, tmp_path_factory):
    path = tmp_path_factory.mktemp('predictions') / 'plain.pkl'
    evaluate('--out', path)
    return load_predictions(path)


def load_predictions(path):
    """Boxes, scores and labels by the name of the image."""
    return {
        Path(prediction['img_path']).name: prediction['pred_instances']
        for prediction in pickle.loads(path.read_bytes())
    }


def test_evaluation_prints_the_figures_of_pycocotools(predictions, digits, evaluate, tmp_path):
    # A detector of eight iterations finds nothing. Were every other box that it predicts true, it
    # would find something, but not all and not with the best scores.
    path = digits / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    results, content['annotations'] = [], []
    for image in content['images']:
        instances = predictions[image['file_name']]
        for index, box in enumerate(instances['bboxes'].double().tolist()):
            left, top, right, bottom = box
            entry = dict(
                image_id=image['id'],
                category_id=int(instances['labels'][index]) + 1,
                bbox=[left, top, right - left, bottom - top],
            )
            results.append(entry | dict(score=float(instances['scores'][index])))
            if index % 2:
                area = (right - left) * (bottom - top)
                content['annotations'].append(entry | dict(id=index, area=area, iscrowd=0))
    for index, annotation in enumerate(content['annotations'], start=1):
        annotation['id'] = index
    path = tmp_path / 'instances.json'
    path.write_text(json.dumps(content))

    metrics = tmp_path / 'metrics.json'
    files = [f'test_{part}.ann_file={path}' for part in ('dataloader.dataset', 'evaluator')]
    output = evaluate('--out', metrics, '--out-item', 'metrics', options=files)

    coco = COCO(path)
    evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]
    evaluation.evaluate()
    evaluation.accumulate()
    average_precision = evaluation.eval['precision']
    expected = dict(
        bbox_mAP=average_precision[:, :, :, 0, -1],
        bbox_mAP_50=average_precision[0, :, :, 0, -1],
    )
    for name, values in expected.items():
        wanted = values[values > -1].mean()
        assert 0.2 < wanted < 0.9
        assert mmengine.load(metrics)[f'coco/{name}'] == pytest.approx(wanted, abs=6e-4)
        assert f'coco/{name}: {wanted:.3f}' in output


def test_every_nth_picture_is_saved_without_corrupt_images(trained, evaluate, tmp_path):
    _, root, _, _ = trained
    output = evaluate('--show-dir', tmp_path, '--interval', 3, root=root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['000001.png', '000007.png']
    # True boxes on the left, predicted ones on the right.
    assert Image.open(tmp_path / '000001.png').size == (384, 192)
    assert output.count('is not drawn') == 1
    assert f'{root}/val/000004.png cannot be read and is not drawn' in output


def test_tta_by_default_merges_the_image_and_its_flip(predictions, digits, evaluate, tmp_path):
    mirrored = tmp_path / 'digits'
    shutil.copytree(digits, mirrored, ignore=shutil.ignore_patterns('classification', 'segments'))
    for path in (mirrored / 'val').iterdir():
        ImageOps.mirror(Image.open(path)).save(path)
    evaluate('--out', tmp_path / 'mirrored.pkl', root=mirrored)
    evaluate('--out', tmp_path / 'tta.pkl', '--tta', options=['tta_pipeline=None'])
    from_mirrored = load_predictions(tmp_path / 'mirrored.pkl')
    for instances in from_mirrored.values():
        instances['bboxes'][:, [0, 2]] = 192 - instances['bboxes'][:, [2, 0]]
    assert_merged(load_predictions(tmp_path / 'tta.pkl'), [predictions, from_mirrored])


@pytest.mark.slow
def test_tta_of_the_digits_merges_three_sizes_without_flip(predictions, evaluate, tmp_path):
    views = [predictions]
    for side in (160, 224):
        path = tmp_path / f'{side}.pkl'
        evaluate(
            *('--out', path),
            options=[f'test_dataloader.dataset.pipeline.1.scale=({side},{side})'],
        )
        views.append(load_predictions(path))
    evaluate('--out', tmp_path / 'tta.pkl', '--tta')
    assert_merged(load_predictions(tmp_path / 'tta.pkl'), views)


def assert_merged(merged_predictions, views):
    """Compare with torchvision's suppression of the boxes of all views."""
    assert len(merged_predictions) == 8
    for name, merged in merged_predictions.items():
        boxes, scores, labels = (
            torch.cat([view[name][key] for view in views]) for key in ('bboxes', 'scores', 'labels')
        )
        kept = torchvision.ops.batched_nms(boxes, scores, labels, iou_threshold=0.5)[:100]
        torch.testing.assert_close(merged['scores'], scores[kept], rtol=1e-4, atol=1e-5)
        # Boxes of nearly equal scores may change places.
        distances = (merged['bboxes'][:, None] - boxes[kept]).abs().amax(2)
        distances += 1e3 * (merged['labels'][:, None] != labels[kept])
        order = kept[distances.argmin(1)]
        assert order.unique().numel() == len(kept)
        torch.testing.assert_close(merged['bboxes'], boxes[order], rtol=1e-4, atol=1e-3)
        assert merged['labels'].equal(labels[order])


@pytest.mark.parametrize(
    'name',
    [
        'mmevit::efficientvit/mask-rcnn_evit_m4_digits.py',
        'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
        'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py',
    ],
)
def test_tta_of_masks_is_refused(name):
    with pytest.raises(ConfigError, match='does not support test-time augmentation for masks'):
        enable_tta(get_config(name))


def test_tta_of_another_library_is_refused():
    with pytest.raises(ConfigError, match="not support default_scope='mmpose'"):
        enable_tta(Config(dict(default_scope='mmpose')))


def test_flags_of_training_reach_the_config(digits, tmp_path, own_loading, monkeypatch):
    configs = []
    monkeypatch.setenv('LOCAL_RANK', '0')  # The command sets it.
    monkeypatch.setattr(
        'mmevit.cli.train.build_trainer',
        lambda cfg: SimpleNamespace(train=lambda: configs.append(cfg)),
    )
    flags = ('no-validate', 'no-pin-memory', 'no-persistent-workers', 'auto-scale-lr', 'amp')
    options = ['--work-dir', str(tmp_path), '--cfg-options', *data_options(digits)]
    train.main([CONFIG, *(f'--{flag}' for flag in flags), *options])
    (cfg,) = configs
    assert cfg.work_dir == str(tmp_path)
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None
    assert cfg.train_dataloader.pin_memory is False
    assert cfg.train_dataloader.persistent_workers is False
    assert cfg.auto_scale_lr.enable is True
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'


@pytest.mark.parametrize(
    ('command', 'arguments', 'parts'),
    [
        ('train', ['configs/no_such.py'], ['configs/no_such.py is missing']),
        (
            'train',
            [
                'configs/retinanet_evit_m4.py',
                '--cfg-options',
                'train_dataloader.dataset.data_root=no/such',
            ],
            ['no/such/annotations/instances_train2017.json', 'retinanet_evit_m4_digits.py'],
        ),
        ('train', [CONFIG, '--resume', 'no.pth'], ['no.pth is missing']),
        ('test', [CONFIG, 'no.pth'], ['no.pth is missing']),
        (
            'train',
            [CONFIG, '--cfg-options', 'model.backbone.arch=m7'],
            ["'m7'", 'm0, m1, m2, m3, m4, m5'],
        ),
        ('test', [CONFIG, 'no.pth', '--out-item', 'metrics'], ['--out-item requires --out.']),
        ('test', [CONFIG, 'no.pth', '--out', 'a.json'], ['a.json must end in .pkl, .pickle.']),
    ],
    ids=lambda value: ' '.join(value)[:60],
)
def test_missing_or_corrupt_inputs_are_one_line_errors(refuse, command, arguments, parts):
    sentence = refuse(command, *arguments)
    assert all(part in sentence for part in parts)


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('model = dict(', 'cannot be read: SyntaxError'),
        ("_base_ = 'no_such.py'", 'cannot be read: FileNotFoundError'),
        ("model = dict(type='RetinaNet')", 'missing train_dataloader, optim_wrapper, train_cfg'),
    ],
)
def test_incomplete_config_is_a_one_line_error(refuse, tmp_path, content, sentence):
    config = tmp_path / 'config.py'
    config.write_text(content)
    assert sentence in refuse('train', config)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_without_arguments_print_their_usage(run_tool, script):
    result = run_tool(f'tools/{script}')
    assert result.returncode == 2
    assert f'Usage: tools/{script}' in result.stdout


@pytest.fixture
def distributed():
    return dict(PORT=free_port(), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='-1')


@pytest.mark.slow
def test_two_processes_on_cpus_train_and_evaluate(detector_config, distributed, tmp_path, run_tool):
    options = ['train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']

    def run(tool, *arguments):
        command = [ROOT / tool, detector_config, *arguments, '--work-dir', tmp_path]
        # mmengine collects the processes' results in a folder below the current one.
        result = run_tool(*command, '--cfg-options', *options, cwd=tmp_path, env=distributed)
        assert result.returncode == 0, result.stdout
        assert 'coco/bbox_mAP' in result.stdout
        return result.stdout

    # Two processes with four images each: sixteen are two iterations of one epoch.
    assert 'Epoch(train) [1][2/2]' in run('tools/dist_train.sh', 2)
    run('tools/dist_test.sh', (tmp_path / 'last_checkpoint').read_text(), 2)


def test_failure_of_a_process_is_a_one_line_error(tmp_path, distributed, run_tool):
    options = [
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_dataloader.dataset.data_root=no/such',
    ]
    result = run_tool('tools/dist_train.sh', CONFIG, 1, *options, env=distributed)
    assert result.returncode == 1 and 'Traceback' not in result.stdout
    lines = result.stdout.strip().splitlines()
    assert lines[-1].startswith('error: process ') and lines[-1].endswith('(see above).')
    assert any(line.startswith('error: ') and 'no/such' in line for line in lines)


def test_slurm_script_passes_its_arguments_to_srun(tmp_path, run_tool):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    result = run_tool(
        'bash', '-c', f'PATH={tmp_path}:$PATH GPUS=4 tools/slurm_train.sh part job a.py "w d" --amp'
    )
    arguments = result.stdout.splitlines()
    assert arguments[:4] == ['-p', 'part', '--job-name=job', '--gres=gpu:4']
    assert arguments[-6:] == ['a.py', '--work-dir', 'w d', '--launcher', 'slurm', '--amp']


def test_checkpoint_of_another_model_is_not_evaluated(trained, detector_config, run_tool):
    checkpoint = (trained[0] / 'last_checkpoint').read_text()
    options = ['--cfg-options', 'model.bbox_head.stacked_convs=3']
    result = run_tool('tools/test.py', detector_config, checkpoint, *options)
    assert result.returncode == 1 and 'Traceback' not in result.stdout
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith('error: ')]
    assert 'missing keys bbox_head.cls_convs.2' in sentence


def test_converted_checkpoint_gives_the_same_predictions(
    trained, predictions, evaluate, run_tool, tmp_path
):
    work_dir, _, _, _ = trained
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    out = tmp_path / 'released.pth'
    result = run_tool('tools/convert_checkpoint.py', checkpoint, out, '--to', 'released')
    assert result.returncode == 0, result.stdout
    assert f'{out}: released format, arch m0, from epoch_2.pth.' in result.stdout
    content = read_checkpoint(out)
    assert 'neck.extra_trans_convs.0.conv.weight' in content['model']
    assert content['meta']['dataset_meta']['classes'] == tuple('0123456789')

    evaluate('--out', tmp_path / 'evit.pkl', checkpoint=f'evit://{out}')
    for name, instances in load_predictions(tmp_path / 'evit.pkl').items():
        assert instances['bboxes'].equal(predictions[name]['bboxes'])
        assert instances['scores'].equal(predictions[name]['scores'])


def test_trusted_checkpoint_with_more_than_weights_is_loaded(
    classifier, digits, refuse, tmp_path, capsys
):
    config, checkpoint = classifier
    odd = tmp_path / 'odd.pth'
    torch.save(torch.load(checkpoint) | dict(note=PurePosixPath('x')), odd)
    arguments = [config, odd, digits / 'val/000001.png', '--out-dir', tmp_path]
    assert '--trust-checkpoint' in refuse('infer', *arguments)
    infer.main([*map(str, arguments), '--trust-checkpoint'])
    assert 'Predictions of 1 images' in capsys.readouterr().out
