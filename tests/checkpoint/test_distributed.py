"""Weights by name in runs of several processes, cached or downloaded."""

import copy
import functools
import http.server
import shutil
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from making import as_released, make_timm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = f"""
_base_ = {str(ROOT / 'configs/evit_m0_digits.py')!r}
custom_imports = dict(imports=['mmevit', 'recording'])
custom_hooks = [dict(type='RecordWeights')]
pretrained = dict(type='Pretrained', checkpoint='evit://m0', prefix='backbone.')
model = dict(backbone=dict(init_cfg=pretrained))
train_cfg = dict(max_epochs=1)
param_scheduler = None
"""
# Each process keeps what it trains from and ends at, and downloads from this machine.
RECORDING = """
import os
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmevit.checkpoint import loader

loader.RELEASE = os.environ['RELEASE']

@HOOKS.register_module()
class RecordWeights(Hook):
    def record(self, runner, name):
        weights = getattr(runner.model, 'module', runner.model).state_dict()
        torch.save(weights, os.path.join(os.environ['RECORDS'], f'{name}_{runner.rank}.pth'))

    def before_train(self, runner):
        self.record(runner, 'first')

    def after_train(self, runner):
        self.record(runner, 'last')

    def before_test(self, runner):
        self.record(runner, 'tested')
"""
FINETUNE = f"""
import runpy
import recording
runpy.run_path({str(ROOT / 'tools/finetune.py')!r}, run_name='__main__')
"""


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A server of a released file, whose head is for the digits, and what was asked of it."""
    model = copy.deepcopy(make_timm('m0'))
    model.reset_classifier(10)
    folder = tmp_path_factory.mktemp('release')
    torch.save(dict(model=as_released(model)), folder / 'efficientvit_m0.pth')
    asked = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked[self.command] += 1

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/', folder / 'efficientvit_m0.pth', asked
        server.shutdown()


@pytest.fixture(params=['cached', 'not cached'])
def run(request, released, digits, run_tool, tmp_path):
    """Run a command in two processes; return what each recorded."""
    url, file, asked = released
    asked.clear()
    cache = tmp_path / 'torch/hub/checkpoints'
    if request.param == 'cached':
        cache.mkdir(parents=True)
        shutil.copy(file, cache)
    (tmp_path / 'config.py').write_text(CONFIG)
    (tmp_path / 'recording.py').write_text(RECORDING)
    (tmp_path / 'finetune.py').write_text(FINETUNE)
    options = ['--cfg-options', 'env_cfg.dist_cfg.timeout=300']
    for split in ('train', 'val', 'test'):
        folder = digits / 'classification' / ('train' if split == 'train' else 'val')
        options.append(f'{split}_dataloader.num_workers=0')
        options.append(f'{split}_dataloader.persistent_workers=False')
        if 'finetune' not in request.node.name:
            options.append(f'{split}_dataloader.dataset.data_root={folder}')

    def run_two(*command):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        result = run_tool(
            *command,
            '--work-dir',
            tmp_path / 'work',
            *options,
            env=dict(
                PYTHONPATH=f'{ROOT}:{tmp_path}',
                PORT=str(port),
                OMP_NUM_THREADS='1',
                CUDA_VISIBLE_DEVICES='-1',
                TORCH_HOME=str(tmp_path / 'torch'),
                RELEASE=url,
                RECORDS=str(tmp_path),
            ),
        )
        assert result.returncode == 0, result.stdout
        assert asked['GET'] == (request.param == 'not cached')
        assert (cache / file.name).read_bytes() == file.read_bytes()
        return lambda name: [torch.load(tmp_path / f'{name}_{rank}.pth') for rank in (0, 1)]

    return run_two


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in ours.items())


def backbone_of(file):
    """The weights of a few layers by the names of both forms, which the test knows by itself."""
    released = torch.load(file)['model']
    return {
        'backbone.stem.0.conv.weight': released['patch_embed.0.c.weight'],
        'backbone.stem.6.norm.bias': released['patch_embed.6.bn.bias'],
    }


def test_training_starts_from_the_same_weights_in_each_process(run, released, tmp_path):
    recorded = run(ROOT / 'tools/dist_train.sh', tmp_path / 'config.py', 2)
    first, other = recorded('first')
    assert_equal(first, other)
    for name, value in backbone_of(released[1]).items():
        assert first[name].equal(value)
    ends = recorded('last')
    # Batch norm without synchronisation has statistics of its own in each process.
    parameters = [name for name in first if 'running' not in name]
    assert_equal(*({name: weights[name] for name in parameters} for weights in ends))
    assert not ends[0]['backbone.stem.0.conv.weight'].equal(first['backbone.stem.0.conv.weight'])


def test_evaluation_is_of_the_same_weights_in_each_process(run, released, tmp_path):
    recorded = run(ROOT / 'tools/dist_test.sh', tmp_path / 'config.py', 'evit://m0', 2)
    first, other = recorded('tested')
    assert_equal(first, other)
    for name, value in backbone_of(released[1]).items():
        assert first[name].equal(value)
    assert first['head.head.linear.bias'].equal(torch.load(released[1])['model']['head.l.bias'])


def test_finetune_reads_weights_before_its_processes_are_joined(run, released, digits, tmp_path):
    launch = [ROOT / 'tools/torchrun.py', '--nproc_per_node=2', '--standalone']
    data = digits / 'classification/train'
    arguments = ['--weights', 'evit://m0', '--epochs', '1', '--batch-size', '4']
    run(
        *(*launch, tmp_path / 'finetune.py', data, '--launcher', 'pytorch'),
        *(*arguments, '--image-size', '64'),
    )
    trained = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert trained['head.head.linear.weight'].shape == (10, 192)
    for name, value in backbone_of(released[1]).items():
        assert 0 < (trained[name] - value).norm() / value.norm() < 0.2
