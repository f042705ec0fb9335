"""The commands in this folder run, and find what they look for."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = f"""
_base_ = {str(ROOT / 'configs/retinanet_evit_m4_digits.py')!r}
root = 'ROOT/'
model = dict(backbone=dict(arch='m0', drop_path_rate=0.1), neck=dict(in_channels=[64, 128, 192]))
load, annotations, resize, pack = _base_.train_dataloader.dataset.pipeline
distort = dict(type='PhotoMetricDistortion')
train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    dataset=dict(data_root=root, pipeline=[load, annotations, distort, resize, pack]),
)
val_dataloader = dict(dataset=dict(data_root=root))
val_evaluator = dict(ann_file=root + 'annotations/instances_val.json')
train_cfg = dict(max_epochs=8, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='EMAHook')]
randomness = dict(seed=5)
"""


@pytest.fixture
def bad_inputs(monkeypatch):
    folder = ROOT / 'tests/robustness/bad_inputs'
    monkeypatch.syspath_prepend(folder)
    return SimpleNamespace(**runpy.run_path(str(folder / '__main__.py')))


@pytest.fixture
def config(digits, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.replace('ROOT', str(digits)))
    return path


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_with_equal_weights(config, tmp_path, run_tool):
    work_dir = tmp_path / 'work'
    result = run_tool('tests/robustness/kill_and_resume.py', config, work_dir, '--kills', 3)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count('│ 1 ') == 3  # once in each phase


@pytest.mark.slow
def test_memory_and_open_files_of_a_run_are_measured(config, tmp_path, run_tool):
    picture = tmp_path / 'soak.png'
    arguments = [config, tmp_path / 'run', '--minutes', 1, '--warm-up', 0.5, '--plot', picture]
    result = run_tool('tests/robustness/soak.py', *arguments)
    assert 'memory: ' in result.stdout and 'files: ' in result.stdout, result.stdout
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_both_commands_that_are_timed_reach_the_first_iteration(tmp_path, run_tool):
    options = ['--images', 48, '--boxes', 480, '--runs', 1]
    result = run_tool('tests/robustness/time_start_up.py', tmp_path, *options)
    assert result.returncode == 0, result.stdout
    memory = {
        name: float(row.split('|')[-2])
        for name, row in re.findall(r'\| (mmevit|mmdet) (\|.*)', result.stdout)
    }
    # At this size the two differ by what mmevit imports.
    assert memory['mmevit'] < 1.2 * memory['mmdet']


@pytest.mark.slow
def test_every_bad_input_is_refused_or_survived(tmp_path, run_tool):
    out = tmp_path / 'table.json'
    result = run_tool(sys.executable, 'tests/robustness/bad_inputs', '--out', out, timeout=3000)
    bad = [row for row in json.loads(out.read_text())['rows'] if row['outcome'].isupper()]
    assert not bad
    assert result.returncode == 0


def test_there_are_more_than_300_kinds_of_bad_input(bad_inputs):
    assert len({case.kind for case in bad_inputs.make_cases()}) > 300


@pytest.mark.parametrize(
    ('case', 'status', 'lines', 'outcome'),
    [
        (dict(), 1, ['error: no such file'], 'refused'),
        (dict(), 2, ['tool.py: error: no such flag'], 'refused'),
        (dict(), 1, ['Traceback', 'error: no (see the traceback above)'], 'refused after a trace'),
        (dict(), 1, ['Traceback', 'KeyError: 7'], 'TRACEBACK'),
        (dict(), 0, ['done'], 'ACCEPTED'),
        (dict(), None, [], 'HANGS'),
        (dict(), -11, [], 'CRASHES'),
        (dict(survives=True), 0, ['done'], 'survived'),
        (dict(survives=True), 1, ['error: no'], 'REFUSED'),
        (dict(survives=True, warning='skipped'), 0, ['done'], 'SILENT'),
        (dict(survives=True, warning='skipped'), 0, ['one is skipped', 'done'], 'survived'),
    ],
)
def test_the_outcome_of_an_input_is_classified(bad_inputs, case, status, lines, outcome):
    case = dict(survives=False, warning='', tool_reports=False) | case
    assert bad_inputs.classify(SimpleNamespace(**case), status, lines)[0].startswith(outcome)


def test_checkpoints_that_differ_in_a_bit_are_found():
    compare = runpy.run_path('tests/robustness/kill_and_resume.py')['compare']

    def checkpoint(weight, step):
        weights = torch.tensor([1.0, weight, 1.0])
        return dict(state_dict=dict(weight=weights), param_schedulers=[dict(last_step=step)])

    ours, next_weight = checkpoint(1.0, 4), torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert compare(ours, checkpoint(1.0, 4)) == dict(state_dict=(0, 1), param_schedulers=(0, 1))
    other = checkpoint(next_weight, 5)
    assert compare(ours, other) == dict(state_dict=(1, 1), param_schedulers=(1, 1))


def test_growth_of_memory_and_open_files_is_found(capsys):
    has_leaks = runpy.run_path('tests/robustness/soak.py')['has_leaks']
    args = SimpleNamespace(minutes=4, warm_up=1)

    def samples(memory, files):
        return [
            dict(memory=100 + memory * minute, files=40 + files * minute, shared=2)
            for minute in range(4)
            for _ in range(30)
        ]

    for growth, leaks in (((0, 0), False), ((2, 0), False), ((20, 0), True), ((0, 1), True)):
        assert has_leaks(samples(*growth), args) == leaks
    passing, leaking = samples(0, 0), samples(0, 0)
    passing[-1]['shared'] = 3
    assert not has_leaks(passing, args)
    for sample in leaking[-30:]:
        sample['shared'] = 3
    assert has_leaks(leaking, args)
    assert 'memory: 120 in the first quarter, 160 in the last one' in capsys.readouterr().out


def test_only_files_of_the_run_in_shared_memory_are_counted():
    measure = runpy.run_path('tests/robustness/soak.py')['measure']
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    ended = 2**22 + 1  # larger than any that runs
    pids = {ended}
    try:
        for owner in (process.pid, ended, ended + 1):
            with NamedTemporaryFile(dir='/dev/shm', prefix=f'torch_{owner}_'):
                assert measure(process, pids)['shared'] == (owner in pids)
    finally:
        process.communicate(b'\n')
