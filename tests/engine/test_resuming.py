import contextlib
import functools
import itertools
import os
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmevit.checkpoint import read_checkpoint
from mmevit.engine import AtomicCheckpointHook, InvalidLossHook
from mmevit.engine.checkpointing import AtomicFileBackend, find_last_checkpoint, resume_from
from mmevit.utils.errors import CheckpointError, UserError
from mmevit.utils.files import UNFINISHED

# Each runner has an instance of mmengine's loggers of its own.
NUMBERS = itertools.count()
# Garbage collection before serializing takes longer than training.
IN_MEMORY = dict(serialize_data=False)


@DATASETS.register_module()
class NumberedPoints(BaseDataset):
    """Twenty points, one of which is unreadable and is replaced by another."""

    def load_data_list(self):
        return [dict(number=number) for number in range(20)]


@TRANSFORMS.register_module()
class NoisyPoint:
    """Uses each of the random generators of augmentations."""

    def __call__(self, results):
        number = results['number']
        if number == 7:
            return None
        noise = random.random(), np.random.rand(), torch.rand(()).item()
        return dict(
            inputs=torch.tensor([number / 20, *noise]),
            data_samples=BaseDataElement(metainfo=dict(img_path=f'{number}.png')),
        )


@TRANSFORMS.register_module()
class PlainPoint:
    """Uses no random numbers."""

    def __call__(self, results):
        return dict(inputs=torch.zeros(4), data_samples=None)


@METRICS.register_module()
class Counting(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(count=len(results))


@MODELS.register_module()
class DroppingPoints(BaseModel):
    """Has dropout and running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 999), nn.BatchNorm1d(999), nn.Dropout(0.5))
        self.output = nn.Linear(999, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.output(self.layers(torch.stack(inputs)))
        return dict(loss=output.square().mean()) if mode == 'loss' else list(output)


class Killed(Exception):
    """Simulates a killed process."""


@HOOKS.register_module()
class Killing(Hook):
    def __init__(self, at, evaluation):
        self.at, self.evaluation = at, evaluation

    def before_val_epoch(self, runner):
        if runner.epoch == self.evaluation:
            raise Killed

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.at:
            raise Killed


def train(
    work_dir,
    until=None,
    by_epoch=True,
    workers=0,
    persistent=False,
    accumulate=1,
    load_from=None,
    kill_at=None,
    kill_evaluation=None,
    batch_size=4,
    checkpoint_by_epoch=True,
    **hook,
):
    """Train for a number of epochs or iterations, or continue the run in a directory."""
    until = until or (4 if by_epoch else 20)
    hook = dict(interval=1, by_epoch=by_epoch and checkpoint_by_epoch) | hook
    loop = dict(max_epochs=until) if by_epoch else dict(max_iters=until)
    cfg = dict(
        model=dict(type='DroppingPoints'),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(type='NumberedPoints', pipeline=[dict(type='NoisyPoint')], **IN_MEMORY),
            sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=persistent,
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=by_epoch, **loop),
        val_dataloader=dict(
            dataset=dict(
                type='NumberedPoints', pipeline=[dict(type='PlainPoint')], indices=2, **IN_MEMORY
            ),
            sampler=dict(type='DefaultSampler', shuffle=False),
            batch_size=1,
            collate_fn=dict(type='pseudo_collate'),
        ),
        val_evaluator=dict(type='Counting'),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=accumulate),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=40, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type='AtomicCheckpointHook', **hook),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[
            dict(type='ResumableRandomnessHook'),
            dict(type='EMAHook'),
            dict(type='InvalidLossHook'),
            dict(type='TrainingWeightsHook'),
            dict(type='Killing', at=kill_at, evaluation=kill_evaluation),
        ],
        randomness=dict(seed=3),
        resume=bool(load_from) or Path(work_dir, 'last_checkpoint').exists(),
        load_from=load_from and str(load_from),
        experiment_name=f'{work_dir}-{next(NUMBERS)}',
    )
    # Formatting takes most of the time of saving a config.
    runner = Runner.from_cfg(Config(cfg, format_python_code=False))
    with contextlib.suppress(Killed):
        runner.train()
    # Workers that persist end with their process, which the runs share here.
    if runner.train_dataloader._iterator is not None:
        runner.train_dataloader._iterator._shutdown_workers()
    return runner


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """Train to the end, once with each setting."""
    return functools.cache(lambda **options: train(tmp_path_factory.mktemp('run'), **options))


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """A copy of the work directory of a run of four epochs."""
    work_dir = tmp_path / 'finished'
    shutil.copytree(uninterrupted().work_dir, work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_4.pth'))
    return work_dir


def last(runner):
    return read_checkpoint(Path(runner.work_dir, 'last_checkpoint').read_text())


def assert_same(ours, theirs):
    for part in ('state_dict', 'ema_state_dict'):
        assert ours[part].keys() == theirs[part].keys()
        for name, value in ours[part].items():
            assert value.equal(theirs[part][name]), name
    for number, state in ours['optimizer']['state'].items():
        for name, value in state.items():
            assert value.equal(theirs['optimizer']['state'][number][name])
    assert ours['param_schedulers'] == theirs['param_schedulers']


@pytest.mark.parametrize(
    'options',
    [
        dict(accumulate=3),
        pytest.param(dict(workers=2), marks=pytest.mark.slow),
        dict(workers=2, persistent=True),
        pytest.param(dict(by_epoch=False), marks=pytest.mark.slow),
        dict(by_epoch=False, workers=2, persistent=True),
    ],
    ids=str,
)
def test_resumed_training_equals_uninterrupted_training_bitwise(uninterrupted, tmp_path, options):
    for kill_at in (7, 18):
        assert train(tmp_path, kill_at=kill_at, **options).iter == kill_at - 1
        assert read_checkpoint((tmp_path / 'last_checkpoint').read_text())['meta']['iter'] > 4
    resumed = train(tmp_path, **options)
    assert resumed.iter == 20
    # Random numbers do not depend on the number of workers.
    rest = {name: value for name, value in options.items() if name in ('accumulate', 'by_epoch')}
    assert_same(last(resumed), last(uninterrupted(**rest)))


@pytest.mark.parametrize(('workers', 'iteration'), [(2, 12), (0, 10)])
def test_resuming_continues_within_an_epoch(uninterrupted, tmp_path, workers, iteration):
    # Epochs of five batches, checkpoints every two.
    hook = dict(checkpoint_by_epoch=False, interval=2, filename_tmpl='iter_{}.pth')
    undisturbed = uninterrupted(**hook)
    left = Path(undisturbed.work_dir, f'iter_{iteration}.pth')
    resumed = train(tmp_path, workers=workers, load_from=left, **hook)
    assert resumed.iter == 20 and not (tmp_path / left.name).exists()
    assert_same(last(resumed), last(undisturbed))


def test_code_in_the_metadata_of_a_checkpoint_is_not_run(finished, tmp_path):
    trace, path = tmp_path / 'trace', finished / 'epoch_1.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['meta']['config'] = f"open({str(trace)!r}, 'w')"
    torch.save(checkpoint, path)
    assert train(tmp_path / 'run', 2, load_from=path).iter == 10
    assert not trace.exists()


def test_killed_evaluation_is_run_after_resuming(tmp_path):
    def counts(**options):
        return train(tmp_path, 2, **options).message_hub.log_scalars.get('val/count')

    assert counts(kill_evaluation=1) is None
    assert len(counts(kill_evaluation=2).data[0]) == 1
    # After the last epoch there is nothing else left to do.
    assert len(counts().data[0]) == 2


def test_epoch_of_another_length_restarts_at_its_first_iteration(finished, tmp_path, capsys):
    runner = train(tmp_path / 'run', 3, batch_size=5, load_from=finished / 'epoch_2.pth')
    # Two epochs are done, of four batches each in this run.
    assert runner.iter == 3 * 4 == runner.max_iters
    assert 'Training continues at iteration 8, where its epoch begins' in capsys.readouterr().out


def test_epochs_and_samples_have_different_random_numbers(tmp_path, monkeypatch):
    drawn = []
    transform = NoisyPoint.__call__
    monkeypatch.setattr(
        NoisyPoint,
        '__call__',
        lambda self, results: drawn.append(transform(self, results)) or drawn[-1],
    )
    train(tmp_path, 2)
    noise = [tuple(sample['inputs'][1:].tolist()) for sample in drawn if sample]
    assert len(noise) == 40 and len(set(noise)) == 40


def test_corrupt_checkpoint_is_reported_and_the_previous_one_used(finished, capsys):
    content = (finished / 'epoch_4.pth').read_bytes()
    (finished / 'epoch_4.pth').write_bytes(content[: len(content) // 2])
    (finished / 'last_checkpoint').write_text('')  # as a kill between two steps leaves it
    cfg = Config(dict(work_dir=str(finished)))
    resume_from(cfg)
    assert cfg.load_from == str(finished / 'epoch_3.pth') and cfg.randomness.seed == 3
    output = capsys.readouterr()
    assert 'epoch_4.pth is corrupt or truncated' in output.out + output.err
    for path in finished.glob('epoch_*.pth'):
        path.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match='Cannot resume from any of the 4 checkpoints'):
        find_last_checkpoint(finished)


def test_last_checkpoint_is_used_and_weights_only_files_are_not(finished):
    content = torch.load(finished / 'epoch_2.pth', weights_only=False)
    torch.save(dict(state_dict=content['state_dict']), finished / 'epoch_9.pth')
    (finished / 'best_count_epoch_8.pth').write_bytes(b'')
    assert find_last_checkpoint(finished)[0] == finished / 'epoch_4.pth'
    (finished / 'epoch_4.pth').rename(finished / 'latest.pth')
    (finished / 'last_checkpoint').write_text(str(finished / 'latest.pth'))
    assert find_last_checkpoint(finished)[0] == finished / 'latest.pth'


def test_older_run_with_higher_numbers_in_the_same_directory_is_not_used(finished):
    shutil.copy(finished / 'epoch_1.pth', finished / 'epoch_30.pth')
    os.utime(finished / 'epoch_30.pth', (0, 0))
    assert find_last_checkpoint(finished)[0] == finished / 'epoch_4.pth'


def test_checkpoint_with_a_fixed_name_is_not_removed(tmp_path):
    train(tmp_path, 2, max_keep_ckpts=1, filename_tmpl='latest.pth')
    assert [path.name for path in tmp_path.glob('*.pth')] == ['latest.pth']


@pytest.fixture
def save_best(monkeypatch):
    """Arguments of the checkpoint hook, with a metric that rises in each evaluation."""
    scores = iter(range(1, 9))
    monkeypatch.setattr(Counting, 'compute_metrics', lambda *_: dict(count=next(scores)))
    return dict(save_best='count', rule='greater')


def test_replaced_best_checkpoint_is_removed_between_other_checkpoints(tmp_path, save_best):
    train(tmp_path, 3, interval=9, kill_at=11, **save_best)
    assert [path.name for path in tmp_path.glob('*.pth')] == ['best_count_epoch_2.pth']


def test_best_checkpoint_with_a_fixed_name_is_not_removed(tmp_path, save_best):
    train(tmp_path, 2, filename_tmpl='latest.pth', **save_best)
    names = {path.name for path in tmp_path.glob('*.pth')}
    assert names == {'latest.pth', 'best_count_latest.pth'}
    assert read_checkpoint(tmp_path / 'best_count_latest.pth')['meta']['epoch'] == 2


def test_remote_directories_use_the_backend_of_mmengine():
    hook = AtomicCheckpointHook(out_dir='http://host/folder')
    assert hook.backend_args is None
    assert AtomicCheckpointHook().backend_args == dict(backend='atomic')


def test_training_starts_from_scratch_without_a_checkpoint(tmp_path):
    assert find_last_checkpoint(tmp_path / 'nothing') is None
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=1)))
    resume_from(cfg)
    assert cfg.get('load_from') is None and cfg.randomness.seed == 1


def test_partial_first_checkpoint_of_a_killed_run_is_ignored(tmp_path):
    half_written = tmp_path / '.unfinished-1' / 'epoch_1.pth'
    half_written.parent.mkdir()
    half_written.write_bytes(b'PK')
    assert find_last_checkpoint(tmp_path) is None


def test_old_checkpoint_is_kept_until_the_next_one_is_complete(tmp_path, monkeypatch):
    put = AtomicFileBackend.put
    present = []

    def look(self, content, path):
        present.append([path.name for path in tmp_path.glob('epoch_*.pth')])
        put(self, content, path)

    monkeypatch.setattr(AtomicFileBackend, 'put', look)
    train(tmp_path, 3, max_keep_ckpts=1)
    assert present == [[], ['epoch_1.pth'], ['epoch_2.pth']]
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_3.pth']


def test_full_disk_raises_checkpoint_error_and_keeps_the_last_checkpoint(tmp_path):
    train(tmp_path, 1)
    leftover = tmp_path / f'{UNFINISHED}of-a-killed-run' / 'epoch_1.pth'
    leftover.parent.mkdir()
    leftover.write_bytes(b'half')
    size = (tmp_path / 'epoch_1.pth').stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            train(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'epoch_2.pth cannot be written' in str(caught.value)
    assert f'Then resume from {tmp_path}/epoch_1.pth with --resume.' in str(caught.value)
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_1.pth']
    assert not list(tmp_path.glob(f'{UNFINISHED}*'))
    assert find_last_checkpoint(tmp_path)[0] == tmp_path / 'epoch_1.pth'


def test_infinite_loss_stops_training_and_names_iteration_and_images(tmp_path, monkeypatch):
    forward = DroppingPoints.forward

    def fail_at_the_sixth(self, inputs, data_samples=None, mode='tensor'):
        outputs = forward(self, inputs, data_samples, mode)
        if mode != 'loss':
            return outputs
        self.calls = getattr(self, 'calls', 0) + 1
        return dict(loss=outputs['loss'] / (self.calls != 6))

    monkeypatch.setattr(DroppingPoints, 'forward', fail_at_the_sixth)
    with pytest.raises(UserError) as caught:
        train(tmp_path, 2)
    message = str(caught.value)
    assert 'not finite in iteration 6 of epoch 2 (loss inf' in message
    assert 'epoch_1.pth with --resume' in message and '.png' in message


def test_nan_weights_are_not_saved(tmp_path, monkeypatch):
    # The loss before a step tells nothing of the weights after it.
    after_train_iter = InvalidLossHook.after_train_iter

    def spoil(self, runner, *args, **kwargs):
        after_train_iter(self, runner, *args, **kwargs)
        if runner.iter == 9:
            runner.model.output.bias.data.fill_(float('nan'))

    monkeypatch.setattr(InvalidLossHook, 'after_train_iter', spoil)
    with pytest.raises(
        CheckpointError, match='weights are not finite: .*output.bias.*epoch_1.pth with'
    ):
        train(tmp_path, 3)
