import json

import matplotlib.image
import pytest

from mmevit.benchmark.measuring import PRODUCT_SIZES
from mmevit.cli import benchmark as command


def run(*arguments):
    """Run the command in this process, which has imported what takes time."""
    command.main([*map(str, arguments)])


@pytest.fixture
def settings(monkeypatch):
    """Replace the measurement: forms take 2, 3, ... ms. Return the settings that were requested."""
    settings = []

    def benchmark(models, forms, setting, baseline):
        settings.append(setting)
        published = [
            dict(top1=model.top1, published_params=model.params, published_macs=model.macs)
            for model in models
        ]
        return [
            dict(model=model.label, form=form, speed=1000 / latency, latency=latency, **numbers)
            for model, numbers in zip(models, published, strict=True)
            for latency, form in enumerate(forms, start=2)
        ]

    monkeypatch.setattr(command, 'benchmark', benchmark)
    return settings


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRODUCT_SIZES, 'cpu', (32,))
    calls = []
    monkeypatch.setattr('mmevit.benchmark.measuring.keep_freed_memory', lambda: calls.append(1))
    run(
        *('efficientvit-m0', 'timm::mobilenetv3_small_100', '--forms', 'eager', 'folded'),
        *('--rounds', 1, '--seconds', 0, '--batch', 1, '--size', 64, 96),
        *('--baseline', 'timm::mobilenetv3_small_100:folded', '--out', tmp_path / 'table.json'),
    )
    table = capsys.readouterr().out
    assert 'batch 1, 1 thread, images of 64 x 96, 1 round.' in table
    rows = json.loads((tmp_path / 'table.json').read_text())['rows']
    assert [f'{row["model"]}:{row["form"]}' for row in rows] == [
        f'{model}:{form}'
        for model in ('efficientvit-m0', 'timm::mobilenetv3_small_100')
        for form in ('eager', 'folded')
    ]
    assert rows[3]['ratio'] == 1 and calls == [1]
    assert all(f'| {row["model"]} | {row["form"]} | {row["speed"]:.1f} |' in table for row in rows)


def test_paper_shows_fastest_form_and_data_keep_all(settings, tmp_path, capsys):
    models = ['efficientvit-m0', 'MobileNetV3-Small', 'EfficientViT-M1']
    for ending in ('json', 'csv', 'md'):
        path = tmp_path / f'table.{ending}'
        run('--paper', *models, '--out', path, '--plot', tmp_path / 'plot.png')
    note, table = capsys.readouterr().out.split('\n\n')[:2]
    assert 'images of their published size' in note
    assert sum(line.startswith('| EfficientViT-M0 | folded |') for line in table.splitlines()) == 1
    assert '| MobileNetV3-Small | folded | 500.0 | 2.0 | 67.4 | 2.5 | 57 |' in table
    assert len(json.loads((tmp_path / 'table.json').read_text())['rows']) == 6
    assert len((tmp_path / 'table.csv').read_text().splitlines()) == 1 + 6
    assert '| EfficientViT-M0 | eager |' not in (tmp_path / 'table.md').read_text()
    assert matplotlib.image.imread(tmp_path / 'plot.png').shape[:2] == (900, 1350)


def test_options_change_the_setting(settings, capsys):
    run('efficientvit-m0')
    assert 'allocator' not in capsys.readouterr().out
    run('efficientvit-m0', '--leave-allocator', '--channels-last', '--threads', 3, '--seed', 5)
    assert 'default allocator.' in capsys.readouterr().out
    names = ('keep_memory', 'channels_last', 'threads', 'seed')
    values = [[getattr(setting, name) for name in names] for setting in settings]
    assert values == [[True, False, 1, 0], [False, True, 3, 5]]


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Name at least one model'),
        (['backbone::m0', '--out', 'table.txt'], 'table.txt must end in'),
        (['backbone::m0', '--plot', 'plot.md'], 'plot.md must end in'),
        (['--paper', 'resnet50'], 'resnet50 is not in the table. Choose from'),
    ],
)
def test_errors(arguments, message, refuse):
    assert message in refuse('benchmark', *arguments)


def test_error_is_one_line(run_tool):
    result = run_tool('tools/benchmark.py', 'efficientvit-m0', '--forms', 'magic')
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith('error: Unknown form magic')
