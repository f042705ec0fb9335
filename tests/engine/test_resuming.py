import contextlib
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


@pytest.fixture
def train(tmp_path):
    """Train in a directory of some name, from scratch or from a checkpoint there."""

    def run(
        name,
        until,
        by_epoch=True,
        workers=0,
        persistent=False,
        accumulate=1,
        load_from=None,
        kill_at=None,
        kill_evaluation=None,
        batch_size=4,
        **hook,
    ):
        hook['by_epoch'] = hook.pop('checkpoint_by_epoch', by_epoch)
        loop = dict(max_epochs=until) if by_epoch else dict(type='IterBasedTrainLoop')
        cfg = dict(
            model=dict(type='DroppingPoints'),
            work_dir=str(tmp_path / name),
            train_dataloader=dict(
                dataset=dict(type='NumberedPoints', pipeline=[dict(type='NoisyPoint')]),
                sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
                batch_size=batch_size,
                num_workers=workers,
                persistent_workers=persistent,
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(by_epoch=True, **loop) if by_epoch else loop | dict(max_iters=until),
            val_dataloader=dict(
                dataset=dict(type='NumberedPoints', pipeline=[dict(type='PlainPoint')]),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=1,
                collate_fn=dict(type='pseudo_collate'),
            ),
            val_evaluator=dict(type='Counting'),
            val_cfg=dict(),
            optim_wrapper=dict(
                optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=accumulate
            ),
            param_scheduler=dict(type='CosineAnnealingLR', T_max=40, by_epoch=False),
            default_hooks=dict(
                checkpoint={'type': 'AtomicCheckpointHook', 'interval': 1, **hook},
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
            resume=bool(load_from) or (tmp_path / name).exists(),
            load_from=load_from,
            experiment_name=f'{tmp_path.name}-{name}-{random.random()}',
        )
        # The hook of the log draws nothing, but other tests may have.
        random.seed(len(list(tmp_path.iterdir())))
        runner = Runner.from_cfg(cfg)
        with contextlib.suppress(Killed):
            runner.train()
        # Workers that persist end with their process, which the runs share here.
        if runner.train_dataloader._iterator is not None:
            runner.train_dataloader._iterator._shutdown_workers()
        return runner

    return run


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
        dict(),
        pytest.param(dict(workers=2), marks=pytest.mark.slow),
        dict(workers=2, persistent=True),
        dict(accumulate=3),
        pytest.param(dict(by_epoch=False), marks=pytest.mark.slow),
        dict(by_epoch=False, workers=2, persistent=True),
    ],
    ids=str,
)
def test_resumed_training_equals_uninterrupted_training_bitwise(train, options):
    end = 4 if options.get('by_epoch', True) else 20
    options = options | dict(by_epoch=options.get('by_epoch', True))
    undisturbed = last(train('undisturbed', end, **options))
    for kill_at in (7, 12, 18):
        assert train('resumed', end, kill_at=kill_at, **options).iter == kill_at - 1
    resumed = train('resumed', end, **options)
    assert resumed.iter == 20
    assert_same(last(resumed), undisturbed)


@pytest.mark.parametrize(('workers', 'iteration'), [(0, 12), (2, 12), (0, 10)])
def test_resuming_continues_within_an_epoch(train, workers, iteration):
    kept = dict(by_epoch=True, workers=workers)
    # Epochs of five batches, checkpoints every two.
    hook = dict(interval=2, filename_tmpl='iter_{}.pth')
    undisturbed = train('undisturbed', 4, **kept, **hook_by_iteration(hook))
    left = Path(undisturbed.work_dir, f'iter_{iteration}.pth')
    resumed = train('resumed', 4, **kept, **hook_by_iteration(hook), load_from=str(left))
    assert resumed.iter == 20 and not Path(resumed.work_dir, left.name).exists()
    assert_same(last(resumed), last(undisturbed))


def test_code_in_the_metadata_of_a_checkpoint_is_not_run(train, tmp_path):
    runner, trace = train('hostile', 1), tmp_path / 'trace'
    checkpoint = last(runner)
    checkpoint['meta']['config'] = f"open({str(trace)!r}, 'w')"
    torch.save(checkpoint, Path(runner.work_dir, 'epoch_1.pth'))
    assert train('hostile', 2).epoch == 2
    assert not trace.exists()


def test_killed_evaluation_is_run_after_resuming(train):
    def counts(runner):
        return runner.message_hub.log_scalars['val/count'].data[0]

    undisturbed = train('undisturbed', 3)
    assert 'val/count' not in train('resumed', 3, kill_evaluation=1).message_hub.log_scalars
    assert len(counts(train('resumed', 3, kill_evaluation=3))) == 2
    # After the last epoch there is nothing else left to do.
    assert len(counts(train('resumed', 3))) == len(counts(undisturbed)) == 3


def test_epoch_of_another_length_restarts_at_its_first_iteration(train, capsys):
    train('run', 2)
    runner = train('run', 3, batch_size=5)
    # Two epochs are done, of four batches each in this run.
    assert runner.iter == 3 * 4 == runner.max_iters
    assert 'Training continues at iteration 8, where its epoch begins' in capsys.readouterr().out


def test_random_numbers_do_not_depend_on_the_number_of_workers(train):
    alone = last(train('alone', 2))
    assert_same(last(train('three', 2, workers=3)), alone)


def test_epochs_and_samples_have_different_random_numbers(train, monkeypatch):
    drawn = []
    transform = NoisyPoint.__call__
    monkeypatch.setattr(
        NoisyPoint,
        '__call__',
        lambda self, results: drawn.append(transform(self, results)) or drawn[-1],
    )
    train('noise', 3)
    noise = [tuple(sample['inputs'][1:].tolist()) for sample in drawn if sample]
    assert len(noise) == 60 and len(set(noise)) == 60


def test_corrupt_checkpoint_is_reported_and_the_previous_one_used(train, capsys):
    runner = train('run', 3)
    work_dir = Path(runner.work_dir)
    content = (work_dir / 'epoch_3.pth').read_bytes()
    (work_dir / 'epoch_3.pth').write_bytes(content[: len(content) // 2])
    (work_dir / 'last_checkpoint').write_text('')  # as a kill between two steps leaves it
    cfg = Config(dict(work_dir=str(work_dir)))
    resume_from(cfg)
    assert cfg.load_from == str(work_dir / 'epoch_2.pth') and cfg.randomness.seed == 3
    output = capsys.readouterr()
    assert 'epoch_3.pth is corrupt or truncated' in output.out + output.err
    for path in work_dir.glob('epoch_*.pth'):
        path.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match='Cannot resume from any of the 3 checkpoints'):
        find_last_checkpoint(work_dir)


def test_last_checkpoint_is_used_and_weights_only_files_are_not(train):
    work_dir = Path(train('run', 3).work_dir)
    content = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    torch.save(dict(state_dict=content['state_dict']), work_dir / 'epoch_9.pth')
    (work_dir / 'best_count_epoch_8.pth').write_bytes(b'')
    assert find_last_checkpoint(work_dir)[0] == work_dir / 'epoch_3.pth'
    (work_dir / 'epoch_3.pth').rename(work_dir / 'latest.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'latest.pth'))
    assert find_last_checkpoint(work_dir)[0] == work_dir / 'latest.pth'


def test_older_run_with_higher_numbers_in_the_same_directory_is_not_used(train):
    work_dir = Path(train('run', 2).work_dir)
    shutil.copy(work_dir / 'epoch_1.pth', work_dir / 'epoch_30.pth')
    os.utime(work_dir / 'epoch_30.pth', (0, 0))
    assert find_last_checkpoint(work_dir)[0] == work_dir / 'epoch_2.pth'


def test_checkpoint_with_a_fixed_name_is_not_removed(train):
    runner = train('run', 3, max_keep_ckpts=1, filename_tmpl='latest.pth')
    assert [path.name for path in Path(runner.work_dir).glob('*.pth')] == ['latest.pth']


def test_best_checkpoint_with_a_fixed_name_is_not_removed(train, monkeypatch):
    scores = iter(range(1, 9))
    monkeypatch.setattr(Counting, 'compute_metrics', lambda *_: dict(count=next(scores)))
    options = dict(save_best='count', rule='greater', filename_tmpl='latest.pth')
    runner = train('run', 2, **options)
    names = {path.name for path in Path(runner.work_dir).glob('*.pth')}
    assert names == {'latest.pth', 'best_count_latest.pth'}
    assert read_checkpoint(Path(runner.work_dir, 'best_count_latest.pth'))['meta']['epoch'] == 2


def test_remote_directories_use_the_backend_of_mmengine():
    hook = AtomicCheckpointHook(out_dir='http://host/folder')
    assert hook.backend_args is None
    assert AtomicCheckpointHook().backend_args == dict(backend='atomic')


def test_training_starts_from_scratch_without_a_checkpoint(tmp_path):
    assert find_last_checkpoint(tmp_path / 'nothing') == (None, None)
    cfg = Config(dict(work_dir=str(tmp_path), randomness=dict(seed=1)))
    resume_from(cfg)
    assert cfg.get('load_from') is None and cfg.randomness.seed == 1


def test_partial_first_checkpoint_of_a_killed_run_is_ignored(tmp_path):
    half_written = tmp_path / '.unfinished-1' / 'epoch_1.pth'
    half_written.parent.mkdir()
    half_written.write_bytes(b'PK')
    assert find_last_checkpoint(tmp_path) == (None, None)


@pytest.mark.parametrize('hook', [dict(max_keep_ckpts=1), dict(max_keep_ckpts=2)], ids=str)
def test_old_checkpoint_is_kept_until_the_next_one_is_complete(train, monkeypatch, hook):
    put = AtomicFileBackend.put
    present = []

    def look(self, content, path):
        present.append([path.name for path in Path(path).parent.glob('epoch_*.pth')])
        put(self, content, path)

    monkeypatch.setattr(AtomicFileBackend, 'put', look)
    runner = train('run', 4, **hook)
    kept = hook['max_keep_ckpts']
    assert [len(names) for names in present] == [min(count, kept) for count in range(4)]
    assert len(list(Path(runner.work_dir).glob('epoch_*.pth'))) == kept


def test_full_disk_raises_checkpoint_error_and_keeps_the_last_checkpoint(train, tmp_path):
    work_dir = Path(train('run', 1).work_dir)
    size = (work_dir / 'epoch_1.pth').stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            train('run', 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 'epoch_2.pth cannot be written' in str(caught.value)
    assert f'Then resume from {work_dir}/epoch_1.pth with --resume.' in str(caught.value)
    assert [path.name for path in work_dir.glob('epoch_*.pth')] == ['epoch_1.pth']
    assert not list(work_dir.glob(f'{UNFINISHED}*'))
    assert find_last_checkpoint(work_dir)[0] == work_dir / 'epoch_1.pth'


def test_partial_files_of_a_killed_run_are_removed(train, tmp_path):
    leftover = tmp_path / 'run' / f'{UNFINISHED}abc' / 'epoch_1.pth'
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b'half')
    train('run', 1)
    assert not leftover.parent.exists()


def test_infinite_loss_stops_training_and_names_iteration_and_images(train, monkeypatch):
    forward = DroppingPoints.forward

    def fail_at_the_eighth(self, inputs, data_samples=None, mode='tensor'):
        outputs = forward(self, inputs, data_samples, mode)
        if mode != 'loss':
            return outputs
        self.calls = getattr(self, 'calls', 0) + 1
        return dict(loss=outputs['loss'] / (self.calls != 8))

    monkeypatch.setattr(DroppingPoints, 'forward', fail_at_the_eighth)
    with pytest.raises(UserError) as caught:
        train('run', 3)
    message = str(caught.value)
    assert 'not finite in iteration 8 of epoch 2 (loss inf' in message
    assert 'epoch_1.pth with --resume' in message and '.png' in message


def test_nan_weights_are_not_saved(train, monkeypatch):
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
        train('run', 3)


def hook_by_iteration(hook):
    """Arguments of the checkpoint hook, with a name that the loop does not have."""
    return dict(checkpoint_by_epoch=False, **hook)
