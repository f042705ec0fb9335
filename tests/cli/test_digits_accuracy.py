import re
import shutil

import pytest

from mmevit.datasets import prepare_digits


def best_accuracy(output):
    return max(map(float, re.findall(r'Epoch\(val\).*accuracy/top1: ([\d.]+)', output)))


@pytest.mark.slow
def test_digits_are_learnt_from_scratch_and_five_of_them_by_fine_tuning(run_tool, tmp_path):
    prepare_digits(tmp_path / 'digits', num_train=1, num_val=1)
    root = tmp_path / 'digits/classification'
    options = [f'{s}_dataloader.dataset.data_root={root}/{s}' for s in ('train', 'val')]
    train = ['tools/train.py', 'configs/evit_m0_digits.py', '--work-dir', tmp_path / 'scratch']
    result = run_tool(*train, '--cfg-options', *options, timeout=1800)
    assert result.returncode == 0, result.stdout
    assert best_accuracy(result.stdout) >= 97.5

    for split in ('train', 'val'):
        for name in '34567':
            shutil.copytree(root / split / name, tmp_path / 'five' / split / name)
    checkpoint = (tmp_path / 'scratch/last_checkpoint').read_text()
    finetune = ['tools/finetune.py', tmp_path / 'five', '--weights', checkpoint]
    flags = ['--image-size', '112', '--no-flip', '--epochs', '6', '--work-dir', tmp_path / 'tuned']
    result = run_tool(*finetune, *flags, timeout=1800)
    assert result.returncode == 0, result.stdout
    assert best_accuracy(result.stdout) >= 99
