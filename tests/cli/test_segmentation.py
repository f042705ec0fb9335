import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from making_models import build_model, save_model
from mmengine.dataset import Compose, pseudo_collate
from PIL import Image

TINY = dict(
    model__backbone__arch='m0',
    model__neck__in_channels=[64, 128, 192],
    model__neck__out_channels=32,
    model__decode_head__in_channels=[32] * 4,
    model__decode_head__channels=16,
)


@pytest.fixture(scope='module')
def segmentor(digits, tmp_path_factory):
    """A config, its file, and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('segmentor')
    torch.manual_seed(0)
    options = {
        f'{split}_dataloader__{name}': value
        for split in ('train', 'val', 'test')
        for name, value in dict(
            dataset__data_root=str(digits), num_workers=0, persistent_workers=False
        ).items()
    }
    cfg = save_model('semantic-fpn_evit_m4_digits', folder / 'model.pth', **TINY, **options)
    cfg.dump(folder / 'config.py')
    return cfg, folder / 'config.py', folder / 'model.pth'


@pytest.fixture(scope='module')
def evaluate(segmentor, run_tool):
    """Run tools/test.py on it."""
    _, config, checkpoint = segmentor

    def run(*flags):
        work_dir = ('--work-dir', checkpoint.parent)
        result = run_tool('tools/test.py', config, checkpoint, *work_dir, *flags)
        assert result.returncode == 0, result.stdout
        return result.stdout

    return run


def mean_iou(predictions):
    """Mean over the classes of their intersection over union over all images, in percent."""
    found, wanted = (
        np.concatenate([prediction[key]['data'].numpy().ravel() for prediction in predictions])
        for key in ('pred_sem_seg', 'gt_sem_seg')
    )
    overlaps = [
        ((found == label) & (wanted == label)).sum() / ((found == label) | (wanted == label)).sum()
        for label in range(11)
        if ((found == label) | (wanted == label)).any()
    ]
    return 100 * np.mean(overlaps)


def test_evaluation_prints_the_overlap_of_the_predictions_and_draws_them(
    evaluate, digits, tmp_path
):
    drawing = ('--show-dir', tmp_path / 'pictures', '--interval', 3)
    output = evaluate('--out', tmp_path / 'predictions.pkl', *drawing)
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert len(predictions) == 8 and all('seg_logits' not in one for one in predictions)
    printed = float(re.search(r'mIoU: (\d+\.\d+)', output)[1])
    assert printed == pytest.approx(mean_iou(predictions), abs=0.01)

    names = ['000001.png', '000004.png', '000007.png']
    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == names
    # The ground truth is on the left.
    picture = np.asarray(Image.open(tmp_path / 'pictures' / names[0]))
    assert picture.shape == (192, 384, 3)
    # The background's colour is black: what is not a digit is darkened.
    background = np.asarray(Image.open(digits / 'segments/val' / names[0])) == 0
    image = np.asarray(Image.open(digits / 'val' / names[0]))
    assert picture[:, :192][background].mean() < 0.4 * image[background].mean()


SIZES = [[dict(type='Resize', scale_factor=factor)] for factor in (0.75, 1.0, 1.25)]
MIRRORED = [[], [dict(type='RandomFlip', prob=1.0)]]


@pytest.mark.parametrize(
    ('views', 'options'),
    [
        pytest.param(SIZES, [], marks=pytest.mark.slow),
        (MIRRORED, ['--cfg-options', 'tta_pipeline=None']),
    ],
    ids=['config', 'none'],
)
def test_tta_averages_the_probabilities_of_the_views(views, options, evaluate, segmentor, tmp_path):
    evaluate('--tta', '--out', tmp_path / 'merged.pkl', *options)
    cfg, _, checkpoint = segmentor
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    for prediction in pickle.loads((tmp_path / 'merged.pkl').read_bytes())[:3]:
        probabilities = []
        for view in views:
            pipeline = Compose([cfg.test_pipeline[0], *view, cfg.test_pipeline[-1]])
            with torch.no_grad():
                (sample,) = model.test_step(
                    pseudo_collate([pipeline(dict(img_path=prediction['img_path']))])
                )
            probabilities.append(sample.seg_logits.data.softmax(0))
        found = prediction['pred_sem_seg']['data'][0]
        assert (found != sum(probabilities).argmax(0)).float().mean() < 1e-3
        assert (found != probabilities[0].argmax(0)).float().mean() > 0.01


def test_training_draws_its_curves_and_survives_corrupt_images(
    segmentor, digits, run_tool, tmp_path
):
    root = tmp_path / 'digits'
    shutil.copytree(digits, root, ignore=shutil.ignore_patterns('classification'))
    (root / 'train/000003.png').write_bytes(b'corrupt')
    (root / 'val/000002.png').write_bytes(b'')
    options = [f'{split}_dataloader.dataset.data_root={root}' for split in ('train', 'val')]
    options += ['default_hooks.unreadable_images.max_share=0.2']
    options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    result = run_tool(
        *('tools/train.py', segmentor[1], '--work-dir', tmp_path / 'run'),
        *('--cfg-options', *options),
    )
    assert result.returncode == 0, result.stdout
    assert f'{root}/train/000003.png cannot be read and is skipped' in result.stdout
    assert f'{root}/val/000002.png cannot be read and is replaced by a blank' in result.stdout
    assert 'mIoU: ' in result.stdout
    assert Image.open(tmp_path / 'run/curves.png').size == (1440, 540)
