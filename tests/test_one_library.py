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
ALONE = {'CascadedGroupAttention', 'EfficientViT', 'SandwichBlock'}
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

    def run(libraries, commands):
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
        return result.stdout, set(json.loads(result.stdout.splitlines()[-1]))

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
    _, public = run_with([], [[script]])
    assert public == ALONE


@pytest.mark.parametrize(
    ('library', 'config', 'public', 'options'),
    [
        (
            'mmdet',
            'retinanet_evit_m4_digits',
            {*ALONE, 'EfficientViTFPN', 'SyncedRetinaHead'},
            ['model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]'],
        ),
        pytest.param(
            'mmseg',
            'semantic-fpn_evit_m4_digits',
            {*ALONE, 'EfficientViTFPN'},
            ['model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]'],
            marks=pytest.mark.slow,
        ),
        (
            'mmpretrain',
            'evit_m0_digits',
            {
                *ALONE,
                'EfficientViTClsHead',
                'DistilledImageClassifier',
                'PlainWindowAttention',
                'SwinLayoutBlock',
            },
            [f'{split}_dataloader.dataset.indices=64' for split in ('train', 'val', 'test')],
        ),
    ],
)
def test_commands_work_with_only_one_library(
    library, config, public, options, digits, run_with, tmp_path
):
    options = [
        *options,
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'param_scheduler=None',
    ]
    for split in ('train', 'val', 'test'):
        folder = 'train' if split == 'train' else 'val'
        root = digits / 'classification' / folder if library == 'mmpretrain' else digits
        options.append(f'{split}_dataloader.dataset.data_root={root}')
        if library == 'mmdet' and split != 'train':
            options.append(f'{split}_evaluator.ann_file={root}/annotations/instances_val.json')
    config, run, checkpoint = f'configs/{config}.py', tmp_path / 'run', tmp_path / 'run/epoch_1.pth'
    image, settings = digits / 'val/000001.png', ['--cfg-options', *options]
    output, found = run_with(
        [library],
        [
            ['tools/train.py', config, '--work-dir', run, *settings],
            ['tools/test.py', config, checkpoint, '--work-dir', run, *settings],
            ['tools/infer.py', config, checkpoint, image, '--out-dir', tmp_path / 'out', *settings],
        ],
    )
    assert found == public
    assert 'Saving checkpoint at 1 epochs' in output and 'Epoch(test)' in output
    assert {path.name for path in tmp_path.glob('out/*/*')} >= {'000001.json', '000001.png'}
