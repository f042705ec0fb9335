"""After a resume, learning rates are those of an uninterrupted run with the current config."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch import nn

from mmevit.engine import ConfigScheduleHook
from mmevit.engine.runner import include_accumulation_in_lr_scaling
from mmevit.utils.errors import CheckpointError


@DATASETS.register_module()
class Zeros(BaseDataset):
    """Twenty samples."""

    def load_data_list(self):
        return [dict(inputs=torch.zeros(2)) for _ in range(20)]


@MODELS.register_module()
class OneLayer(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, inputs, sample_idx=None, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).square().mean())


@HOOKS.register_module()
class RecordingRates(Hook):
    """Record the settings of the optimizer in each iteration."""

    def __init__(self, rates):
        self.rates = rates

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = runner.optim_wrapper.param_groups
        self.rates[runner.iter] = [(group['lr'], group['weight_decay']) for group in groups]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.ends = getattr(self, 'ends', 0) + self.end_of_epoch(runner.train_dataloader, batch_idx)


COSINE = [
    dict(type='LinearLR', start_factor=0.01, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, begin=1, convert_to_iter_based=True),
]
STEPS = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=6),
    dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.1),
]
LATER_STEPS = [STEPS[0], {**STEPS[1], 'milestones': [2, 3]}]
POLY = dict(type='PolyLR', by_epoch=False)
ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.05)


@pytest.fixture(scope='module')
def make_runner(tmp_path_factory):
    """Make a runner in a directory of its own; epochs have five iterations of four samples."""

    def make(
        schedule=COSINE,
        epochs=4,
        iters=None,
        batch_size=4,
        load_from=None,
        optimizer=ADAMW,
        **options,
    ):
        work_dir = str(tmp_path_factory.mktemp('run'))
        rates = {}
        cfg = dict(
            model=dict(type='OneLayer'),
            work_dir=work_dir,
            train_dataloader=dict(
                # Garbage collection before serializing takes longer than training.
                dataset=dict(type='Zeros', serialize_data=False),
                sampler=dict(type='InfiniteSampler' if iters else 'DefaultSampler'),
                batch_size=batch_size,
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(by_epoch=False, max_iters=iters)
            if iters
            else dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(
                optimizer=optimizer,
                paramwise_cfg=dict(custom_keys=dict(bias=dict(lr_mult=0.5, decay_mult=0.0))),
            ),
            param_scheduler=schedule,
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=1, by_epoch=False, filename_tmpl='{}.pth'
                )
            ),
            custom_hooks=[
                dict(type='ResumableRandomnessHook'),
                dict(type='ConfigScheduleHook'),
                dict(type='RecordingRates', rates=rates),
            ],
            randomness=dict(seed=0),
            resume=bool(load_from),
            load_from=load_from and str(load_from),
            experiment_name=work_dir,
            **options,
        )
        # Formatting takes most of the time of saving a config.
        runner = Runner.from_cfg(Config(cfg, format_python_code=False))
        runner.recording = next(h for h in runner.hooks if isinstance(h, RecordingRates))
        runner.rates = runner.recording.rates
        return runner

    return make


@pytest.fixture(scope='module')
def trained(make_runner):
    """Train with some settings, once with each."""
    runners = {}

    def train(**settings):
        key = repr(settings)
        if key not in runners:
            runners[key] = make_runner(**settings)
            runners[key].train()
        return runners[key]

    return train


def checkpoint_of(runner, iteration):
    return Path(runner.work_dir, f'{iteration}.pth')


def read_log(runner):
    (path,) = Path(runner.work_dir).glob('*/*.log')
    return path.read_text()


@pytest.mark.parametrize(
    ('old', 'new', 'saved', 'begin'),
    [
        (dict(), dict(epochs=3), 5, 5),
        (dict(), dict(batch_size=2), 7, 10),
        (dict(schedule=STEPS), dict(schedule=STEPS, batch_size=2), 5, 10),
        (dict(schedule=STEPS), dict(), 10, 10),
        (dict(), dict(schedule=None), 10, 10),
        (dict(schedule=None), dict(schedule=STEPS), 10, 10),
        (dict(schedule=STEPS), dict(schedule=LATER_STEPS), 10, 10),
        (dict(), dict(schedule=[{**COSINE[0], 'start_factor': 0.5}, COSINE[1]]), 3, 3),
        (dict(), dict(optimizer={**ADAMW, 'lr': 1e-4}), 10, 10),
        (dict(), dict(optimizer={**ADAMW, 'weight_decay': 0.5}), 10, 10),
        (dict(), dict(auto_scale_lr=dict(enable=True, base_batch_size=8)), 10, 10),
        (dict(schedule=POLY, iters=10), dict(schedule=POLY, iters=20), 10, 10),
    ],
    ids=str,
)
def test_resumed_learning_rates_equal_those_of_a_full_run_of_the_config(
    make_runner, trained, old, new, saved, begin
):
    resumed = make_runner(load_from=checkpoint_of(trained(**old), saved), **new)
    resumed.train()
    full = trained(**new)
    assert list(resumed.rates) == list(range(begin, full.iter))
    for iteration, rates in resumed.rates.items():
        torch.testing.assert_close(rates, full.rates[iteration], rtol=1e-12, atol=0)
    assert 'The schedule follows the config' in read_log(resumed)


def test_without_changes_schedule_of_the_checkpoint_and_end_of_the_epoch_are_kept(
    make_runner, trained
):
    assert trained().recording.ends == 4
    resumed = make_runner(load_from=checkpoint_of(trained(), 7))
    resumed.train()
    assert resumed.recording.ends == 3
    assert 'The schedule' not in read_log(resumed)


def test_schedule_that_depends_on_metrics_is_kept_with_a_warning(make_runner, trained):
    plateau = dict(type='ReduceOnPlateauLR', monitor='loss')
    path = checkpoint_of(trained(schedule=plateau, epochs=1), 5)
    resumed = make_runner(schedule=dict(plateau, patience=3), load_from=path)
    resumed.train()
    message = 'patience 10 -> 3), but ReduceOnPlateau depends on past metrics'
    assert message in read_log(resumed)


@pytest.mark.parametrize('name', ['SGD', 'Adadelta'])
def test_state_of_another_optimizer_raises_checkpoint_error(make_runner, trained, name):
    optimizer = dict(type=name, lr=0.1, weight_decay=0.1)
    runner = make_runner(optimizer=optimizer, load_from=checkpoint_of(trained(), 5))
    with pytest.raises(CheckpointError, match=f'of the config, {name}, has.*load_from=CHECKPOINT'):
        runner.train()


def test_other_parameter_groups_raise_checkpoint_error(make_runner, trained):
    runner = make_runner(load_from=checkpoint_of(trained(), 5))
    runner.model.layer.bias = None
    with pytest.raises(
        CheckpointError, match='2 parameters in 2 groups, but .* config has 1 param'
    ):
        runner.train()


@pytest.mark.parametrize(('batch_size', 'count'), [(8, 1), (2, 4)])
def test_auto_scale_lr_includes_accumulated_batches(make_runner, batch_size, count):
    scaling = dict(enable=True, base_batch_size=8)
    runner = make_runner(batch_size=batch_size, epochs=1, auto_scale_lr=scaling, schedule=None)
    runner.optim_wrapper['accumulative_counts'] = count
    runner.train_loop  # noqa: B018
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    include_accumulation_in_lr_scaling(runner)
    runner.train()
    # One update sees eight images, for which the learning rate was chosen.
    assert runner.optim_wrapper.param_groups[0]['lr'] == 1e-3
    assert runner.cfg.auto_scale_lr == scaling


def test_several_optimizers_without_schedulers_can_be_resumed(make_runner):
    runner = make_runner()
    wrappers = {
        name: OptimWrapper(torch.optim.SGD([parameter], lr=0.1))
        for name, parameter in runner.model.layer.named_parameters()
    }
    runner.optim_wrapper, runner.param_schedulers = OptimWrapperDict(**wrappers), None
    runner._resume = True
    checkpoint = dict(meta=dict(epoch=1, iter=5), optimizer=runner.optim_wrapper.state_dict())
    ConfigScheduleHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['optimizer'] == runner.optim_wrapper.state_dict()


def test_empty_state_of_an_optimizer_is_refused(make_runner):
    runner = make_runner()
    runner.optim_wrapper = OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.1))
    runner._resume = True
    checkpoint = dict(meta=dict(epoch=1, iter=5), optimizer={}, param_schedulers=[])
    with pytest.raises(CheckpointError, match='load_from=CHECKPOINT'):
        ConfigScheduleHook().after_load_checkpoint(runner, checkpoint)
