import csv
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from making_models import TINY, save_model
from PIL import Image

from mmevit.benchmark.measuring import PRODUCT_SIZES
from mmevit.deploy import load_exported

QUICK = ['--rounds', 1, '--batch', 1, '--size', 64]
SPLITS = dict(train='train', val='val', test='val')  # of the digits, and their folders


@pytest.fixture
def run_analysis(own_loading, monkeypatch):
    """Run a command in this process, which is faster."""
    monkeypatch.setitem(PRODUCT_SIZES, 'cpu', (32,))

    def run(name, *arguments):
        import_module(f'mmevit.cli.analysis.{name}').main([*map(str, arguments)])

    return run


@pytest.fixture
def digits_model(digits, tmp_path):
    """A config on the small digits set, and a checkpoint of random weights."""
    options = {
        f'{split}_dataloader__dataset__data_root': f'{digits}/classification/{part}'
        for split, part in SPLITS.items()
    }
    cfg = save_model(
        'evit_m0_digits',
        tmp_path / 'model.pth',
        model__backbone__arch=dict(TINY, _delete_=True),
        model__head__in_channels=32,
        **options,
    )
    cfg.dump(tmp_path / 'digits.py')
    return tmp_path / 'digits.py', tmp_path / 'model.pth'


def test_profile_runtime(run_analysis, tmp_path, capsys):
    run_analysis(
        'profile_runtime', 'backbone::m0', 'timm::resnet18', *QUICK, '--deploy',
        '--out', tmp_path / 'table.json', '--plot', tmp_path / 'shares.png',
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        'of the time in operators is memory-bound' in printed and '| kind | time | ms |' in printed
    )
    rows = json.loads((tmp_path / 'table.json').read_text())['rows']
    assert {row['model'] for row in rows} == {'backbone::m0', 'timm::resnet18'}
    assert 'stages.*.*.attention' in {row['module'] for row in rows}
    assert 'normalization' not in {row['kind'] for row in rows if row['bytes']}  # folded
    assert Image.open(tmp_path / 'shares.png').size == (1350, 390)


def test_head_similarity(run_analysis, digits_model, tmp_path, capsys):
    config, checkpoint = digits_model
    run_analysis(
        'head_similarity', config, f'{config}={checkpoint}', 'backbone::m1', '--images', 3,
        '--out', tmp_path / 'table.csv', '--plot', tmp_path / 'heads.png',
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert 'mean over 3 images' in printed and 'backbone::m1: ' in printed
    with (tmp_path / 'table.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [len(row['heads'].split()) for row in rows] == [2, 3, 2] + [2, 3, 3, 3, 3, 3]
    assert all(0 < float(row['mean']) < 1 + 1e-6 for row in rows)
    assert Image.open(tmp_path / 'heads.png').size == (1050, 600)


def test_channel_importance(run_analysis, digits_model, tmp_path, capsys):
    config, checkpoint = digits_model
    run_analysis(
        'channel_importance', config, checkpoint, '--params', 0.7, '--images', 4, '--random', 1,
        '--work-dir', tmp_path / 'work', '--export', tmp_path / 'pruned.torchscript',
        '--out', tmp_path / 'table.md', '--plot', tmp_path / 'kept.png',
    )  # fmt: skip
    printed = capsys.readouterr().out
    scores = [line.split(' | ') for line in printed.splitlines() if line.startswith('| ')][-3:]
    assert [cells[0] for cells in scores] == ['| original', '| by importance', '| random, seed 0']
    original, pruned = (float(cells[1]) for cells in scores[:2])
    assert pruned / original == pytest.approx(0.7, abs=0.02)  # rounded to thousands
    (logits,) = load_exported(tmp_path / 'pruned.torchscript')(torch.rand(3, 3, 112, 112))
    assert logits.shape == (3, 10)
    assert Image.open(tmp_path / 'kept.png').size == (1500, 450)


def test_ablation(run_analysis, tmp_path, capsys):
    configs = ['configs/evit_m4_in1k.py', 'configs/ablation/evit_m4_10-layer-norm.py']
    run_analysis('ablation', *configs, *QUICK, '--out', tmp_path / 'table.json')
    printed = capsys.readouterr().out
    assert '| 8.80 |' in printed and '| 15914 |' in printed
    assert 'Table 6, (10): layer normalization over channels instead of batch norm' in printed


def test_ablation_compares_all_configs_by_default(run_analysis, monkeypatch):
    names = []
    module = 'mmevit.cli.analysis.ablation'
    monkeypatch.setattr(f'{module}.find_model', names.append)
    monkeypatch.setattr(f'{module}.benchmark', lambda models, *_: [{} for _ in models])
    run_analysis('ablation')
    configs = {path.name for path in Path('configs/ablation').glob('*.py')}
    assert {Path(name).name for name in names} == {'evit_m4_in1k.py', *configs}
    assert all(Path(name).is_file() for name in names)


@pytest.mark.slow
def test_ablation_trains_on_the_digits(run_tool, digits, tmp_path):
    folders = [
        f'{split}_dataloader.dataset.data_root={digits}/classification/{part}'
        for split, part in SPLITS.items()
    ]
    result = run_tool(
        'tools/analysis/ablation.py', 'configs/ablation/evit_m4_05-plain-attention.py', *QUICK,
        '--train-digits', '--work-dir', tmp_path, '--cfg-options', 'train_cfg.max_epochs=2',
        'train_dataloader.batch_size=8', *folders,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert 'digits top-1' in result.stdout.splitlines()[-3]
    (log,) = tmp_path.glob('*/*/vis_data/scalars.json')
    scores = [json.loads(line).get('accuracy/top1', 0) for line in log.read_text().splitlines()]
    assert result.stdout.splitlines()[-1].split('|')[-2].strip() == f'{max(scores):.2f}'


@pytest.mark.slow
def test_attention_ratio(run_analysis, tmp_path, capsys):
    run_analysis(
        'attention_ratio', 'deit-t', '--attention', 0.25, 0.5, '--batch', 1,
        '--out', tmp_path / 'table.json', '--plot', tmp_path / 'ratio.png',
    )  # fmt: skip
    assert '| deit-t | 25% |' in capsys.readouterr().out
    rows = json.loads((tmp_path / 'table.json').read_text())['rows']
    assert [row['attention'] for row in rows] == [0.25, 0.5]
    assert Image.open(tmp_path / 'ratio.png').size == (900, 600)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['profile_runtime'], 'Name at least one model'),
        (['profile_runtime', 'backbone::m0', '--plot', 'a.md'], 'a.md must end in'),
        (
            ['head_similarity', 'configs/evit_m0_digits.py', 'a=b.pth'],
            'checkpoint b.pth is missing',
        ),
        (
            ['channel_importance', 'configs/retinanet_evit_m4_digits.py', 'a.pth'],
            'is not an mmpretrain classifier',
        ),
        (['ablation', 'configs/none.py'], 'configs/none.py is missing'),
        (['attention_ratio', '--attention', '60'], 'must be from 0 to 1'),
    ],
)
def test_errors(refuse, arguments, message):
    name, *others = arguments
    assert message in refuse(f'analysis.{name}', *others)
