"""Each of mmdet, mmpretrain and mmsegmentation alone, or none of them, is enough."""

import json
import os
import re
import site
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = dict(
    mmdet='onedl_mmdetection', mmpretrain='onedl_mmpretrain', mmseg='onedl_mmsegmentation'
)
SCRIPT = """
import importlib.metadata, importlib.util, json, runpy, sys
distributions, commands = json.loads(sys.argv[1])
for module, distribution in distributions.items():
    assert importlib.util.find_spec(module) is None
    try:
        assert not importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
for sys.argv in commands:
    runpy.run_path(sys.argv[0], run_name='__main__')
from mmevit import models
print(json.dumps(models.__all__))
"""


@pytest.fixture
def run_with(tmp_path, run_tool):
    """Run commands, one after the other, where only some of the libraries are installed."""

    def run(libraries, *commands):
        missing = {name: DISTRIBUTIONS[name] for name in DISTRIBUTIONS if name not in libraries}
        folder = tmp_path / 'site-packages'
        folder.mkdir()
        for path in Path(site.getsitepackages()[0]).iterdir():
            if re.split('[-.]', path.name)[0] not in {*missing, *missing.values()}:
                (folder / path.name).symlink_to(path)
        # Without site, Python knows no other packages than these.
        result = run_tool(
            *(sys.executable, '-S', '-c', SCRIPT),
            json.dumps([missing, [list(map(str, command)) for command in commands]]),
            env=dict(PYTHONPATH=os.pathsep.join((str(ROOT), str(folder)))),
        )
        assert result.returncode == 0, result.stdout
        backbone = {'CascadedGroupAttention', 'EfficientViT', 'SandwichBlock'}
        return result.stdout, set(json.loads(result.stdout.splitlines()[-1])) ^ backbone

    return run


def test_backbone_needs_no_other_library(run_with, tmp_path):
    script = tmp_path / 'use.py'
    script.write_text("""
import torch
import mmevit
from mmengine.registry import MODELS

backbone = MODELS.build(dict(type='EfficientViT', arch='m0')).eval()
assert len(backbone(torch.rand(1, 3, 64, 64))) == 3
""")
    _, others = run_with([], [script])
    assert not others


SMALL = ['model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]']


@pytest.mark.parametrize(
    ('library', 'config', 'public', 'options'),
    [
        (
            'mmdet',
            'retinanet_evit_m4',
            {
                'DistilledSingleStageDetector',
                'DistilledTwoStageDetector',
                'EfficientViTFPN',
                'SyncedRetinaHead',
            },
            SMALL,
        ),
        pytest.param(
            *('mmseg', 'semantic-fpn_evit_m4', {'EfficientViTFPN'}, SMALL), marks=pytest.mark.slow
        ),
        (
            'mmpretrain',
            'evit_m0',
            {
                'DistilledImageClassifier',
                'EfficientViTClsHead',
                'PlainWindowAttention',
                'SwinLayoutBlock',
            },
            [],
        ),
    ],
)
def test_commands_work_with_only_one_library(
    library, config, public, options, digits, run_with, tmp_path
):
    settings = ['--cfg-options', *options, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    settings += ['param_scheduler=None', 'train_dataloader.batch_size=2']
    for split in ('train', 'val', 'test'):
        root = digits
        if library == 'mmpretrain':
            root = digits / 'classification' / ('train' if split == 'train' else 'val')
        dataset = f'{split}_dataloader.dataset'
        settings += [f'{dataset}.data_root={root}', f'{dataset}.indices=2']
        if library == 'mmdet' and split != 'train':
            settings.append(f'{split}_evaluator.ann_file={root}/annotations/instances_val.json')
    config, run, checkpoint = f'configs/{config}_digits.py', tmp_path / 'run', 'epoch_1.pth'
    image, out = digits / 'val/000001.png', tmp_path / 'out'
    output, found = run_with(
        [library],
        ['tools/train.py', config, '--work-dir', run, *settings],
        ['tools/test.py', config, run / checkpoint, '--work-dir', run, *settings],
        ['tools/infer.py', config, run / checkpoint, image, '--out-dir', out, *settings],
    )
    assert found == public
    assert 'Saving checkpoint at 1 epochs' in output and 'Epoch(test)' in output
    assert {path.name for path in out.glob('*/*')} >= {'000001.json', '000001.png'}
