import json

import matplotlib.image
import pytest

from mmevit.cli.benchmark import main

QUICK = ['--rounds', 1, '--seconds', 0, '--batch', 1]


@pytest.fixture
def run_benchmark():
    """Run the command in this process, which has imported what takes time."""

    def run(*arguments):
        main([*map(str, arguments)])

    return run


def test_command(run_benchmark, tmp_path, capsys):
    run_benchmark(
        *('efficientvit-m0', 'timm::efficientvit_m0', '--forms', 'eager', 'folded', *QUICK),
        *('--baseline', 'timm::efficientvit_m0:folded', '--out', tmp_path / 'table.json'),
    )
    table = capsys.readouterr().out
    assert 'batch 1, 1 thread, images of their published size, 1 round.' in table
    rows = json.loads((tmp_path / 'table.json').read_text())['rows']
    names = [f'{row["model"]}:{row["form"]}' for row in rows]
    assert names == [
        f'{model}:{form}'
        for model in ('efficientvit-m0', 'timm::efficientvit_m0')
        for form in ('eager', 'folded')
    ]
    assert rows[3]['ratio'] == 1
    assert all(f'| {row["model"]} | {row["form"]} | {row["speed"]:.1f} |' in table for row in rows)


def test_paper_shows_fastest_form_and_json_keeps_all(run_benchmark, tmp_path, capsys):
    models = ['efficientvit-m0', 'MobileNetV3-Small', 'EfficientViT-M1']
    for ending in ('json', 'csv'):
        path = tmp_path / f'table.{ending}'
        run_benchmark('--paper', *models, *QUICK, '--out', path, '--plot', tmp_path / 'plot.png')
    table = capsys.readouterr().out.split('\n\n')[1]
    assert sum(line.startswith('| EfficientViT-M0 |') for line in table.splitlines()) == 1
    assert '| 67.4 | 2.5 | 57 |' in table
    assert len(json.loads((tmp_path / 'table.json').read_text())['rows']) == 6
    assert len((tmp_path / 'table.csv').read_text().splitlines()) == 4
    assert matplotlib.image.imread(tmp_path / 'plot.png').shape[:2] == (900, 1350)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Name at least one model'),
        (['backbone::m0', '--out', 'table.txt'], 'table.txt must end in'),
        (['backbone::m0', '--plot', 'plot.md'], 'plot.md must end in'),
        (['--paper', 'resnet50'], 'resnet50 is not a model of the paper. Choose from'),
    ],
)
def test_errors(run_benchmark, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run_benchmark(*arguments)


def test_error_is_one_line(run_tool):
    result = run_tool('tools/benchmark.py', 'efficientvit-m0', '--forms', 'magic')
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith('error: Unknown form magic')


def test_leave_allocator(run_benchmark, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr('mmevit.benchmark.measuring.keep_freed_memory', lambda: calls.append(1))
    run_benchmark('efficientvit-m0', '--forms', 'folded', *QUICK)
    assert calls == [1] and 'allocator' not in capsys.readouterr().out
    run_benchmark('efficientvit-m0', '--forms', 'folded', *QUICK, '--leave-allocator')
    assert calls == [1] and 'default allocator.' in capsys.readouterr().out
