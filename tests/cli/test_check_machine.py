import runpy
import shutil
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture
def find_problem():
    return runpy.run_path('tools/dev/check_machine.py')['find_problem']


def test_this_machine_passes_all_checks_except_disk_space(find_problem, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100 * 2**30))
    assert find_problem(str(tmp_path / 'venv')) == ''


def test_full_disk_is_reported_with_the_space_needed(find_problem, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=3.5 * 2**30))
    sentence = find_problem(str(tmp_path / 'no/such/venv'))
    assert sentence.startswith(f'{tmp_path} has 3.5 GiB free') and 'VENV=' in sentence


@pytest.mark.parametrize('version', [(3, 9, 0), (3, 14, 0)])
def test_unsupported_python_is_reported(find_problem, monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', version)
    assert '3.10 to 3.13' in find_problem('venv')


@pytest.mark.parametrize(
    ('settings', 'parts'),
    [
        (dict(env=dict(CXX='no-such-c++')), ['no-such-c++', 'C++ compiler']),
        (dict(flags=['PYTHON=no-such-python']), ['no-such-python', 'Python 3.10 to 3.13']),
    ],
)
def test_make_stops_before_anything_is_installed(run_tool, tmp_path, settings, parts):
    venv = tmp_path / 'venv'
    result = run_tool(
        'make', 'env', f'VENV={venv}', *settings.get('flags', []), env=settings.get('env')
    )
    assert result.returncode == 2
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith('error: ')]
    assert all(part in sentence for part in parts)
    assert not venv.exists()
