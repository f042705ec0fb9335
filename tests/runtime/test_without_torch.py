"""The runtime needs neither PyTorch nor OpenMMLab."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from making_exported import means, write_exported

ROOT = Path(__file__).parents[2]
BLOCKED = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'mmseg', 'cv2', 'packaging', 'rich')
BLOCK = f'import sys; sys.modules.update(dict.fromkeys({BLOCKED})); '


def run_python(code, *arguments):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    command = [sys.executable, '-c', BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture
def model(tmp_path):
    cv2.imwrite(str(tmp_path / 'street.png'), np.full((30, 40, 3), 7, np.uint8))
    return write_exported(tmp_path / 'means.onnx', **means())


def test_predictor_and_command_run_without_them(model, tmp_path):
    code = 'from mmevit.runtime import Predictor; print(Predictor(sys.argv[1])(sys.argv[2]).logits)'
    result = run_python(code, model, tmp_path / 'street.png')
    assert result.stdout.strip() == '[7. 7. 7.]', result.stderr
    code = 'from mmevit.cli.main import main; main(sys.argv[1:])'
    result = run_python(code, 'predict', model, tmp_path / 'street.png', '--out', tmp_path / 'out')
    assert result.stdout == f'Predictions of 1 images are in {tmp_path}/out.\n', result.stderr
    assert {path.name for path in tmp_path.glob('out/*/*')} == {'street.json', 'street.png'}


@pytest.mark.parametrize(
    'code',
    [
        'import mmevit; mmevit.EfficientViT',
        'from mmevit import models',
        "from mmevit.cli.main import main; main(['train'])",
        "from mmevit.cli.main import main; main(['self-check'])",
    ],
)
def test_all_else_says_what_to_install(code):
    result = run_python(code)
    assert result.returncode == 1
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .endswith(
            'torch is not installed, but mmevit needs it, except for mmevit.runtime. '
            'Run pip install "mmevit[openmmlab]".'
        )
    )


def test_other_names_do_not_exist():
    result = run_python('import mmevit; print(mmevit.__version__, hasattr(mmevit, "nothing"))')
    assert result.stdout.split()[1] == 'False'


@pytest.mark.slow
def test_installed_wheel_is_small_and_predicts_within_two_seconds(model, tmp_path):
    """In an environment made by pip, from a package index."""
    source = tmp_path / 'source'
    for name in ('configs', 'mmevit', 'requirements', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, source)
    build = 'from setuptools.build_meta import build_wheel; build_wheel("..")'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob('*.whl')
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
    # Without the checkout, whose metadata pip would take for an installed package.
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [tmp_path / 'env/bin/pip', 'install', '--quiet', f'{wheel}[runtime]']
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if 'NewConnectionError' in result.stderr or 'No matching distribution' in result.stderr:
        pytest.skip(f'pip cannot reach a package index: {result.stderr.splitlines()[-1]}')
    assert result.returncode == 0, result.stderr
    files = [path for path in (tmp_path / 'env').rglob('*') if path.is_file()]
    packages = {path.name.split('-')[0] for path in tmp_path.glob('env/lib/*/site-packages/*-info')}
    assert not packages & {'torch', 'onedl_mmengine', 'onedl_mmcv', 'mmengine', 'mmcv'}
    assert sum(path.stat().st_size for path in files if not path.is_symlink()) < 300e6
    code = 'import sys; from mmevit.runtime import Predictor; Predictor(sys.argv[1])(sys.argv[2])'
    command = [tmp_path / 'env/bin/python', '-c', code, model, tmp_path / 'street.png']
    times = []
    for _ in range(3):  # the first also compiles and reads the files
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=tmp_path, env=env)
        times.append(time.perf_counter() - start)
    assert min(times) < 2
    command = [tmp_path / 'env/bin/mmevit', 'predict', model, 'street.png', '--out', 'out']
    subprocess.run(command, check=True, cwd=tmp_path, env=env)
    assert (tmp_path / 'out/vis/street.png').is_file()
