import shutil

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image


@pytest.fixture(scope='module')
def scenes(digits, tmp_path_factory):
    """Scenes with segmentation maps of three classes, 16 for training and 8 for validation."""
    root = tmp_path_factory.mktemp('own') / 'scenes'
    for split in ('train', 'val'):
        shutil.copytree(digits / split, root / 'images' / split)
        (root / 'masks' / split).mkdir(parents=True)
        for path in (digits / 'segments' / split).iterdir():
            # Background, digits below 5, and others.
            pixels = np.digitize(np.asarray(Image.open(path)), [1, 6])
            Image.fromarray(pixels.astype(np.uint8)).save(root / 'masks' / split / path.name)
    (root / 'classes.txt').write_text('paper\nlow\nhigh')
    return root


@pytest.fixture(scope='module')
def finetuned(scenes, tmp_path_factory, run_tool):
    """The work directory and the output of a training from random weights."""
    work_dir, before = tmp_path_factory.mktemp('work'), sorted(scenes.rglob('*'))
    result = run_tool(
        *('tools/finetune.py', scenes, '--weights', 'none', '--work-dir', work_dir, '--no-flip'),
        *('--image-size', '64', '96', '--epochs', '1', '--batch-size', '4'),
    )
    assert result.returncode == 0, result.stdout
    assert sorted(scenes.rglob('*')) == before
    return work_dir, result.stdout


def test_config_holds_the_data_and_sizes(finetuned):
    work_dir, output = finetuned
    assert 'Task: semantic-segmentation' in output and '| images with: low' in output
    cfg = Config.fromfile(work_dir / 'semantic-fpn_evit_m1_finetune.py')
    assert cfg.model.decode_head.num_classes == 3
    assert cfg.model.neck.in_channels == [128, 144, 192]
    assert tuple(cfg.model.data_preprocessor.size) == (64, 96)
    assert cfg.train_dataloader.dataset.metainfo.classes == ('paper', 'low', 'high')
    assert 'RandomFlip' not in cfg.pretty_text


def test_best_checkpoint_is_evaluated_drawn_and_named_with_the_next_commands(
    finetuned, scenes, run_tool
):
    work_dir, output = finetuned
    (checkpoint,) = work_dir.glob('best_mIoU_*.pth')
    config = work_dir / 'semantic-fpn_evit_m1_finetune.py'
    assert f'mmevit export {config} {checkpoint} --to onnx' in output
    (work_dir / 'confusions.png').rename(work_dir / 'first.png')
    result = run_tool('tools/test.py', config, checkpoint, '--work-dir', work_dir / 'again')
    assert result.returncode == 0, result.stdout
    assert output.split('mIoU: ')[-1].split()[0] == result.stdout.split('mIoU: ')[-1].split()[0]
    pictures = [np.asarray(Image.open(work_dir / f'{n}.png')) for n in ('first', 'confusions')]
    assert (pictures[0] == pictures[1]).all()
    image = next((work_dir / 'seg_maps/images/val').iterdir())
    assert set(np.unique(Image.open(image))) <= {0, 1, 2}
    source, out_dir = next((scenes / 'images/val').iterdir()), work_dir / 'predicted'
    result = run_tool('tools/infer.py', config, checkpoint, source, '--out-dir', out_dir)
    assert result.returncode == 0, result.stdout
    assert (out_dir / 'vis' / source.name).is_file()


def test_other_tasks_are_refused(scenes, refuse, tmp_path):
    def refused(*command):
        return refuse('finetune', '--work-dir', tmp_path / 'work', *command)

    assert 'do not tell one object from another' in refused(scenes, '--task', 'detection')
    sentence = refused(scenes, '--model', 'rtmdet_evit_m0')
    assert 'is a config of mmdet. This task needs one of mmseg.' in sentence


def test_maps_that_are_not_recognized_do_not_train_a_classifier(scenes, refuse, tmp_path):
    data = tmp_path / 'data'
    for path in scenes.glob('*/train/*.png'):
        # Compression changes the values.
        folder = data / path.parts[-3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert('RGB').save(folder / f'{path.stem}.jpg')
    sentence = refuse('finetune', data, '--work-dir', tmp_path / 'work')
    assert 'images, masks do not look like classes' in sentence
