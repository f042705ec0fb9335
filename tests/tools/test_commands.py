import pickle
import re
import shutil

import mmengine
import pytest
import torch
from PIL import Image

CONFIG = 'configs/retinanet_evit_m4_digits.py'
# The commands are what is tested here: the smallest model that goes through all of them.
TINY = ['model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]']


def data_options(root):
    evaluators = [f'{s}_evaluator.ann_file={root}/annotations/instances_val.json' for s in SPLITS]
    return [
        f'train_dataloader.dataset.data_root={root}',
        *(f'{split}_dataloader.dataset.data_root={root}' for split in SPLITS),
        *evaluators,
    ]


SPLITS = ('val', 'test')


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory, run_tool):
    """A work directory after two epochs of four iterations, in which an image is corrupt."""
    root = tmp_path_factory.mktemp('corrupt') / 'digits'
    shutil.copytree(digits, root)
    (root / 'train/000003.png').write_bytes(b'torn')
    (root / 'val/000002.png').write_bytes(b'')
    work_dir = tmp_path_factory.mktemp('work')
    options = [*TINY, *data_options(root), 'train_dataloader.batch_size=4']
    train = ['tools/train.py', CONFIG, '--work-dir', work_dir]
    first = run_tool(*train, '--cfg-options', *options, 'train_cfg.max_epochs=1')
    assert first.returncode == 0, first.stdout
    second = run_tool(
        *train,
        '--resume',
        '--cfg-options',
        *options,
        'train_cfg.max_epochs=2',
    )
    assert second.returncode == 0, second.stdout
    return work_dir, root, first.stdout, second.stdout


def test_training_leaves_checkpoint_log_and_curve(trained):
    work_dir, _, _, _ = trained
    checkpoint = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)
    assert checkpoint['meta']['epoch'] == 2
    assert len(list(work_dir.glob('*/*.log'))) == 2
    assert Image.open(work_dir / 'curves.png').size == (1440, 540)


def test_resume_goes_on_where_training_was(trained):
    _, _, first, second = trained
    assert 'Epoch(train) [1]' in first and 'Epoch(train) [2]' not in first
    assert 'Epoch(train) [1]' not in second and 'resumed epoch: 1' in second


def test_corrupt_images_do_not_end_training_and_are_named(trained):
    _, root, first, _ = trained
    assert f'{root}/train/000003.png cannot be read and is skipped' in first
    assert f'{root}/val/000002.png cannot be read and is taken as a blank image' in first


@pytest.fixture(scope='module')
def tested(trained, digits, run_tool):
    """The output and files of tools/test.py with most of its flags."""
    work_dir, _, _, _ = trained
    result = run_tool(
        'tools/test.py',
        CONFIG,
        (work_dir / 'last_checkpoint').read_text(),
        '--work-dir',
        work_dir,
        '--out',
        work_dir / 'predictions.pkl',
        '--show-dir',
        work_dir / 'pictures',
        '--interval',
        '3',
        '--cfg-options',
        *TINY,
        *data_options(digits),
        'model.test_cfg.score_thr=0.01',
    )
    assert result.returncode == 0, result.stdout
    return work_dir, result.stdout


def test_evaluation_prints_the_table_of_pycocotools_for_the_predictions_it_dumps(tested, digits):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    work_dir, output = tested
    predictions = pickle.loads((work_dir / 'predictions.pkl').read_bytes())
    assert len(predictions) == 8
    coco = COCO(digits / 'annotations/instances_val.json')
    boxes = []
    for prediction in predictions:
        instances = prediction['pred_instances']
        for box, score, label in zip(
            instances['bboxes'].tolist(),
            instances['scores'].tolist(),
            instances['labels'].tolist(),
            strict=True,
        ):
            left, top, right, bottom = box
            boxes.append(
                dict(
                    image_id=prediction['img_id'],
                    category_id=label + 1,
                    score=score,
                    bbox=[left, top, right - left, bottom - top],
                )
            )
    assert boxes
    evaluation = COCOeval(coco, coco.loadRes(boxes), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    printed = re.search(r'coco/bbox_mAP: (-?[\d.]+)', output)[1]
    assert float(printed) == pytest.approx(evaluation.stats[0], abs=6e-4)


def test_pictures_of_every_so_many_images_are_saved_where_asked(tested):
    work_dir, _ = tested
    names = sorted(path.name for path in (work_dir / 'pictures').iterdir())
    assert names == ['000001.png', '000004.png', '000007.png']
    # True boxes on the left, predicted ones on the right.
    assert Image.open(work_dir / 'pictures/000001.png').size == (384, 192)


def test_metrics_are_written_and_flips_are_averaged(trained, digits, run_tool):
    work_dir, _, _, _ = trained
    result = run_tool(
        'tools/test.py',
        CONFIG,
        (work_dir / 'last_checkpoint').read_text(),
        '--tta',
        '--work-dir',
        work_dir,
        '--out',
        work_dir / 'metrics.json',
        '--out-item',
        'metrics',
        '--cfg-options',
        *TINY,
        *data_options(digits),
        'model.test_cfg.score_thr=0.01',
    )
    assert result.returncode == 0, result.stdout
    assert 'coco/bbox_mAP_50' in mmengine.load(work_dir / 'metrics.json')


@pytest.mark.parametrize(
    ('command', 'parts'),
    [
        (['tools/train.py', 'configs/no_such.py'], ['configs/no_such.py is missing']),
        (
            [
                'tools/train.py',
                'configs/retinanet_evit_m4.py',
                '--cfg-options',
                'train_dataloader.dataset.data_root=no/such',
            ],
            ['no/such/annotations/instances_train2017.json', 'retinanet_evit_m4_digits.py'],
        ),
        (['tools/train.py', CONFIG, '--resume', 'no.pth'], ['no.pth is missing']),
        (['tools/test.py', CONFIG, 'no.pth'], ['no.pth is missing']),
        (
            ['tools/train.py', CONFIG, '--cfg-options', 'model.backbone.arch=m7'],
            ["'m7'", 'm0, m1, m2, m3, m4, m5'],
        ),
    ],
    ids=lambda value: ' '.join(value)[:60],
)
def test_what_is_missing_ends_a_command_with_one_sentence(run_tool, command, parts):
    result = run_tool(*command, timeout=60)
    assert result.returncode == 1
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith('error: ')]
    assert 'Traceback' not in result.stdout
    assert all(part in sentence for part in parts)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_without_arguments_say_how_they_are_used(run_tool, script):
    result = run_tool(f'tools/{script}')
    assert result.returncode == 2
    assert f'Usage: tools/{script}' in result.stdout


def test_two_processes_on_cpus_train_and_evaluate(trained, digits, tmp_path, run_tool):
    options = [
        *TINY,
        *data_options(digits),
        'env_cfg.dist_cfg.backend=gloo',
        'model.test_cfg.score_thr=0.01',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=4',
    ]
    env = dict(PORT='29611', OMP_NUM_THREADS='1')
    result = run_tool(
        'tools/dist_train.sh', CONFIG, 2, '--work-dir', tmp_path, '--cfg-options', *options, env=env
    )
    assert result.returncode == 0, result.stdout
    assert 'Epoch(train) [1][2/2]' in result.stdout or 'coco/bbox_mAP' in result.stdout
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    result = run_tool(
        'tools/dist_test.sh',
        CONFIG,
        checkpoint,
        2,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        *options,
        env=env,
    )
    assert result.returncode == 0, result.stdout
    assert 'coco/bbox_mAP' in result.stdout


def test_slurm_script_hands_its_arguments_to_srun(tmp_path, run_tool):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    result = run_tool(
        'bash', '-c', f'PATH={tmp_path}:$PATH GPUS=4 tools/slurm_train.sh part job a.py "w d" --amp'
    )
    arguments = result.stdout.splitlines()
    assert arguments[:4] == ['-p', 'part', '--job-name=job', '--gres=gpu:4']
    assert arguments[-6:] == ['a.py', '--work-dir', 'w d', '--launcher', 'slurm', '--amp']
