import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer, get_model
from PIL import Image

from mmevit.checkpoint import read_checkpoint
from mmevit.models import EfficientViT

# With all that a list of files might trip over.
NAMES = {'3': ' drei', '5': 'fünf', '7': 'sieben: 7\n"$x_$"'}


@pytest.fixture(scope='module')
def photos(digits, tmp_path_factory):
    """Three classes with names of their own, not split."""
    root = tmp_path_factory.mktemp('own') / 'photos'
    for digit, name in NAMES.items():
        folder = digits / 'classification/train' / digit
        (root / name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:20]:
            shutil.copy(path, root / name)
    (root / ' drei/torn.png').write_bytes(b'torn')
    return root


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A classifier of another number of classes and of other windows."""
    model = get_model('efficientvit-m1_8xb256_in1k', backbone=dict(window_sizes=(4, 4, 2)))
    path = tmp_path_factory.mktemp('weights') / 'm1.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def finetuned(photos, weights, tmp_path_factory, run_tool):
    work_dir = tmp_path_factory.mktemp('work')
    options = ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']
    options.append('default_hooks.unreadable_images.max_share=0.1')
    result = run_tool(
        *('tools/finetune.py', photos, '--weights', weights, '--work-dir', work_dir),
        *('--image-size', '64', '--epochs', '1', '--batch-size', '7', '--no-flip'),
        *('--cfg-options', *options),
    )
    assert result.returncode == 0, result.stdout
    return work_dir, result.stdout


def test_config_holds_the_data_and_the_network_of_the_weights(finetuned, photos, weights):
    work_dir, _ = finetuned
    cfg = Config.fromfile(work_dir / 'evit_m5_finetune.py')
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.arch, list(backbone.window_sizes)) == ('m1', [4, 4, 2])
    assert backbone.init_cfg.checkpoint == f'evit://{weights}'
    assert (head.num_classes, head.in_channels, cfg.data_preprocessor.num_classes) == (3, 192, 3)
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size) == (1, 7)
    (resize,), (pack,) = cfg.tta_pipeline[-1].transforms  # without the mirror image
    assert (list(resize.scale), pack.type) == ([64, 64], 'PackInputs')
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomResizedCrop'].scale == 64 and 'RandomFlip' not in steps
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (64, 64)
    train, val = (
        json.loads((work_dir / f'{name}_images.json').read_text())['data_list']
        for name in ('train', 'val')
    )
    listed = sorted(item['img_path'] for item in train + val)
    assert listed == sorted(str(path.relative_to(photos)) for path in photos.glob('*/*'))
    assert len(val) == 12


def test_backbone_starts_from_the_weights_and_the_head_anew(finetuned, weights):
    work_dir, _ = finetuned
    trained = read_checkpoint(work_dir / 'epoch_1.pth')['state_dict']
    before = read_checkpoint(weights)['state_dict']
    assert trained['head.head.linear.weight'].shape == (3, 192)
    # One epoch moves weights a little; other random ones would be far away.
    name = 'backbone.stem.0.conv.weight'
    distance = (trained[name] - before[name]).norm() / before[name].norm()
    assert 0 < distance < 0.2


def test_picture_is_named_with_a_probability_by_the_code_that_is_printed(finetuned, photos):
    work_dir, output = finetuned
    assert ' drei/torn.png cannot be read' in output
    assert '"fünf"' in output
    checkpoint = next(work_dir.glob('best_*.pth'))
    assert str(checkpoint) in output
    classes = read_checkpoint(checkpoint)['meta']['dataset_meta']['classes']
    assert list(classes) == sorted(NAMES.values())
    lines = output[output.index('To classify an image in Python:') :].splitlines()[1:]
    scope = {}
    exec(f'{lines[0].strip()}\n{lines[1].strip()}', scope)
    assert isinstance(scope['classify'], ImageClassificationInferencer)
    result = scope['classify'](str(next(photos.glob(' drei/0*.png'))))[0]
    assert result['pred_class'] in NAMES.values()
    assert result['pred_score'] == pytest.approx(result['pred_scores'].max())
    assert result['pred_scores'].sum() == pytest.approx(1)


def test_end_names_the_network_of_the_weights(finetuned):
    assert 'The network:    EfficientViT-m1' in finetuned[1]


def test_kept_config_evaluates_and_resumes(finetuned, run_tool, tmp_path):
    work_dir, output = finetuned
    config = work_dir / 'evit_m5_finetune.py'
    result = run_tool('tools/test.py', config, work_dir / 'epoch_1.pth', '--work-dir', tmp_path)
    assert result.returncode == 0, result.stdout
    accuracy = output[output.rindex('accuracy/top1:') :].split()[1]
    assert f'accuracy/top1: {accuracy}' in result.stdout
    shutil.copytree(work_dir, tmp_path / 'copy')
    (tmp_path / 'copy/last_checkpoint').write_text(str(tmp_path / 'copy/epoch_1.pth'))
    result = run_tool(
        *('tools/train.py', config, '--resume', '--work-dir', tmp_path / 'copy'),
        *('--cfg-options', 'train_cfg.max_epochs=2'),
    )
    assert result.returncode == 0, result.stdout
    assert 'Epoch(val) [2]' in result.stdout and 'Epoch(val) [1]' not in result.stdout


def test_wrong_data_and_weights_are_refused_in_one_sentence(photos, refuse, tmp_path):
    def refused(*command):
        return refuse('finetune', '--work-dir', tmp_path / 'work', *command)

    assert 'is missing' in refused(tmp_path / 'nothing')
    two = tmp_path / 'two'
    for name in ('cat', 'dog'):
        (two / name).mkdir(parents=True)
        for index in range(2):
            Image.new('RGB', (8, 8)).save(two / name / f'{index}.png')
    assert 'is inside the data' in refused(two, '--work-dir', two / 'work')
    assert 'batches of 1' in refused(two, '--batch-size', '1')
    assert '-3 is not an integer above 0' in refused(two, '--epochs', '-3')
    assert 'neither a file nor one of the names' in refused(photos, '--weights', 'm9.pth')
    folded = EfficientViT('m0')
    folded.switch_to_deploy()
    weights = {f'backbone.{name}': value for name, value in folded.state_dict().items()}
    torch.save(dict(state_dict=weights), tmp_path / 'folded.pth')
    sentence = refused(photos, '--weights', tmp_path / 'folded.pth')
    assert 'has no trainable weights of m0' in sentence
    assert not list((tmp_path / 'work').glob('*.pth'))
