"""Two processes on this CPU do what one does with all their images."""

import pickle
from collections import Counter

import pytest
import torch
from running_tools import ROOT

# In float64, since in float32 the sums over a batch and over its halves differ by 1e-6 already.
CONFIG = """
_base_ = 'BASE'
custom_imports = dict(imports=['mmevit', 'recording'])
custom_hooks = [dict(type='Recording')]
sync_bn = 'torch'
train_cfg = dict(max_epochs=2)
randomness = dict(seed=0)
"""
RECORDING = """
import os
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

torch.set_default_dtype(torch.float64)

@HOOKS.register_module()
class Recording(Hook):
    def before_train(self, runner):
        self.records = []
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.data_preprocessor.register_forward_hook(
            lambda _, __, data: {**data, 'inputs': data['inputs'].double()}
        )

        def record(*_):
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters()}

        runner.optim_wrapper.optimizer.register_step_pre_hook(record)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        images = [sample.img_id for sample in data_batch['data_samples']]
        self.records.append((images, self.gradients))

    def after_train(self, runner):
        torch.save(self.records, os.path.join(runner.work_dir, f'records_{runner.rank}.pth'))
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory, detector_config, run_tool):
    """Run a tool in one or two processes; returns their work directory."""
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'config.py').write_text(CONFIG.replace('BASE', str(detector_config)))
    (folder / 'recording.py').write_text(RECORDING)
    env = dict(PYTHONPATH=f'{ROOT}:{folder}', OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='-1')

    def run_in(count, tool, *arguments):
        launcher = ('--launcher', 'pytorch') if count > 1 else ()
        result = run_tool(
            *(ROOT / f'tools/{tool}.py', *arguments, *launcher, '--work-dir', folder / str(count)),
            cwd=folder,
            env=env,
            processes=count,
        )
        assert result.returncode == 0, result.stdout
        return folder / str(count)

    return run_in


@pytest.fixture(scope='module')
def runs(run):
    """Work directories after two epochs of two iterations, of eight images each."""
    return {
        count: run(
            *(count, 'train', 'config.py', '--no-validate'),
            *('--cfg-options', f'train_dataloader.batch_size={8 // count}'),
        )
        for count in (1, 2)
    }


def records(work_dir, rank):
    return torch.load(work_dir / f'records_{rank}.pth')


def test_each_image_is_seen_once_an_epoch(runs):
    for epoch in range(2):
        iterations = slice(2 * epoch, 2 * epoch + 2)
        seen = Counter(
            image
            for rank in range(2)
            for images, _ in records(runs[2], rank)[iterations]
            for image in images
        )
        assert seen == Counter(range(1, 17))


def test_each_batch_is_that_of_one_process(runs):
    processes = (records(runs[1], 0), records(runs[2], 0), records(runs[2], 1))
    for (together, _), (first, _), (second, _) in zip(*processes, strict=True):
        assert sorted(together) == sorted(first + second)


def test_gradients_are_those_of_one_process(runs):
    for (_, ours), (_, expected) in zip(records(runs[2], 0), records(runs[1], 0), strict=True):
        assert ours.keys() == expected.keys()
        scale = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in expected.items():
            assert (ours[name] - gradient).abs().max() < 1e-6 * scale, name


def test_evaluation_is_that_of_one_process(run, runs, detector_config):
    predictions = []
    for count in (1, 2):
        out = runs[count] / 'predictions.pkl'
        run(count, 'test', detector_config, runs[1] / 'epoch_2.pth', '--out', out)
        predictions.append(pickle.loads(out.read_bytes()))
    assert len(predictions[0]) == len(predictions[1]) == 8
    for ours, expected in zip(*predictions, strict=True):
        assert ours['img_id'] == expected['img_id']
        assert len(expected['pred_instances']['scores']) > 0
        for name, values in expected['pred_instances'].items():
            assert ours['pred_instances'][name].equal(values)
