"""``python -m mmevit``, as a user runs it and check by check."""

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import mmcv
import mmdet.registry
import mmengine
import pytest
import torch

from mmevit.cli import self_check
from mmevit.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NAMES = [name for name, _, _ in self_check.CHECKS]
# An extension that was compiled for another PyTorch.
BROKEN_OPERATORS = """
import importlib.machinery, importlib.util, sys

class Broken(importlib.machinery.SourceFileLoader):
    def create_module(self, spec):
        raise ImportError('_ext.so: undefined symbol: _ZN2at4_ops')

class Finder:
    def find_spec(name, path=None, target=None):
        if name == 'mmcv._ext':
            return importlib.util.spec_from_loader(name, Broken(name, name))

sys.meta_path.insert(0, Finder)
"""
LIBRARIES = ('mmdet', 'mmpretrain', 'mmseg')


def results(printed):
    """The line of each check by its name."""
    return {
        match[1]: match[0] for match in re.finditer(r'^(?:ok|failed) +(.+?): .*$', printed, re.M)
    }


def test_all_checks_pass_here(capsys):
    with pytest.raises(SystemExit) as caught:
        self_check.main([])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines, found = printed.splitlines(), results(printed)
    assert list(found) == NAMES and all(line.startswith('ok ') for line in found.values())
    for module in (torch, mmcv, mmengine, mmdet):
        (line,) = [line for line in lines if line.startswith(f'{module.__name__} ')]
        assert line.split()[1].split('+')[0] == module.__version__.split('+')[0]
    assert f'numpy {version("numpy")}' in lines
    assert f'CPU, {torch.backends.cpu.get_cpu_capability()}, ' in found['PyTorch']
    assert found['registry'].endswith('for mmengine, mmdet, mmpretrain, mmseg')
    assert 'mmevit::efficientvit/retinanet_evit_m4.py' in found['configs']


def test_broken_operators_are_reported_where_mmcv_is_alone(run_tool, tmp_path):
    hidden = f'import sys\nsys.modules.update(dict.fromkeys({(*LIBRARIES, "pycocotools")}))\n'
    (tmp_path / 'sitecustomize.py').write_text(hidden + BROKEN_OPERATORS)
    # Away from the checkout.
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    command = (sys.executable, '-m', 'mmevit')
    result = run_tool(*command, cwd=tmp_path, env=dict(PYTHONPATH=path))
    found = results(result.stdout)
    assert list(found) == NAMES and result.returncode == 1, result.stdout
    line = found["mmcv's operators"]
    assert [name for name in NAMES if found[name].startswith('failed')] == ["mmcv's operators"]
    assert 'undefined symbol' in line and 'Compile them' in line and line.endswith('FORCE_CUDA=1.')
    assert found['registry'].endswith('for mmengine')
    assert found['configs'].endswith('models in the index')
    assert 'only detection needs it' in found['pycocotools']


def test_only_mmdet_and_mmseg_need_operators(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    with pytest.raises(UserError, match='which mmdet and mmseg may need. Replace mmcv-lite by'):
        self_check.check_operators()
    for library in ('mmdet', 'mmseg'):
        monkeypatch.setitem(sys.modules, library, None)
    assert 'none in mmcv-lite; detection needs them' in self_check.check_operators()


def nan_maps(backbone, images):
    return [torch.full(shape, torch.nan) for shape in self_check.M0_SHAPES]


@pytest.mark.parametrize(
    ('name', 'path', 'value', 'parts'),
    [
        ('libraries', 'mmevit.utils.versions.version', lambda name: '0.1', ['0.1 is', 'pip']),
        ('PyTorch', 'torch.get_num_threads', None, ['Install a build of torch']),
        (
            "mmcv's operators",
            'mmcv.ops.nms',
            lambda *args: (None, torch.arange(3)),
            ['[0, 1, 2], not [0, 2]', 'Compile them'],
        ),
        ('registry', 'mmdet.registry.MODELS', {'EfficientViT': dict}, [' in mmdet. Do not import']),
        ('forward', 'mmevit.models.EfficientViT.forward', nan_maps, ['not finite', 'Fix']),
        (
            'configs',
            'mmevit.cli.self_check.MIM_FOLDER',
            Path('no/such'),
            ['model-index.yml', 'wheel'],
        ),
        ('pycocotools', 'pycocotools.mask.area', lambda mask: 5, ['area of 5', 'pip install']),
    ],
    ids=NAMES,
)
def test_each_check_fails_with_one_line(name, path, value, parts, monkeypatch, capsys):
    check = self_check.CHECKS[NAMES.index(name)]
    assert self_check.is_ok(*check)
    assert capsys.readouterr().out.startswith(f'ok      {name}: ')
    monkeypatch.setattr(path, value)
    assert not self_check.is_ok(*check)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f'failed  {name}: ') and line.endswith('.')
    assert all(part in line for part in parts)
