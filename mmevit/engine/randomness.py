"""Random numbers that depend only on the seed and the position in training."""

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

# Purposes of random numbers; each has its own seeds.
SAMPLE, MODEL = range(2)


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Make resumed training identical to uninterrupted training.

    Random numbers for a sample depend on the seed, the epoch and the position of the sample in it;
    those of the model on the seed, the iteration and the process. They do not depend on the number
    of workers. Several processes that share the batches of one load the same samples as the one. A
    run that is resumed within an epoch continues with its remaining batches. Transforms that cache
    images in their worker, such as mmdet's ``CachedMosaic``, still depend on what the worker has
    loaded. Training commands add this hook; elsewhere set
    ``custom_hooks = [dict(type='ResumableRandomnessHook')]``.
    """

    # Before hooks that draw random numbers.
    priority = 'VERY_HIGH'
    # Number of finished batches of the epoch in which a run was resumed.
    num_done = 0

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the length of an epoch."""
        loader = runner.train_dataloader
        checkpoint['meta']['batches_per_epoch'] = getattr(
            loader.batch_sampler, 'full_length', len(loader)
        )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restart the epoch if its length has changed, at the iteration where it then begins."""
        if not runner._resume or not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        meta, length = checkpoint['meta'], len(runner.train_dataloader)
        begin, saved_length = meta['epoch'] * length, meta.get('batches_per_epoch')
        if saved_length != length:
            # A checkpoint of the last iteration is saved before its epoch counts as done.
            is_done = saved_length and meta['iter'] == (meta['epoch'] + 1) * saved_length
            iteration = begin + length if is_done else begin
            if meta['iter'] != iteration:
                runner.logger.info(
                    f'An epoch has {length} iterations, in the checkpoint '
                    f'{saved_length or "an unknown number"}. Training continues at iteration '
                    f'{iteration}, where its epoch {"ends" if is_done else "begins"}, instead of '
                    f'{meta["iter"]}.'
                )
                checkpoint.pop('gradients', None)
            meta['iter'] = iteration
        self.num_done = meta['iter'] - begin

    def before_train(self, runner: Runner) -> None:
        """Number the samples, and seed each where it is loaded.

        Private attributes: mmengine has no hook between building a data loader and iterating over
        it. A batch sampler in the config would disable its fast resuming of iteration-based loops.
        """
        loader: Any = runner.train_dataloader
        self.batches = SeededBatchSampler(loader.batch_sampler, runner.rank, runner.world_size)
        # DataLoader forbids to set it since workers have the former one; none has been started.
        vars(loader)['batch_sampler'] = self.batches
        loader.dataset.__getitems__ = partial(load_samples, loader.dataset)
        endless: Any = getattr(runner.train_loop, 'dataloader_iterator', None)
        if getattr(endless, '_iterator', None) is not None:
            # Older versions of mmengine start the iterator before training, with workers that may
            # persist, and with indices that end when their first reader does.
            endless._iterator = loader._iterator = None
            if hasattr(loader.sampler, '_indices_of_rank'):
                loader.sampler.indices = loader.sampler._indices_of_rank()
            self.batches.begin((runner.seed, 0), first=0)
            endless._iterator = iter(loader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the position where training begins or continues."""
        endless = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            done, self.num_done = self.num_done, 0
            self.batches.begin((runner.seed, runner.epoch), done, num_skipped=done)
        elif endless is None or can_skip(endless):
            self.batches.begin((runner.seed, 0), first=runner.iter)
        elif endless._iterator is None:
            # mmengine iterates over all finished batches.
            self.batches.begin((runner.seed, 0), first=0)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the random numbers of the model."""
        seed_all(runner.seed, MODEL, runner.iter, runner.rank)


def can_skip(endless: Any) -> bool:
    """Whether mmengine's endless iterator resumes by skipping indices in the sampler."""
    return hasattr(endless, '_resolve_sampler') and endless._resolve_sampler() is not None


class SeededIndex(NamedTuple):
    """An index into a data set, and the seed of its sample."""

    index: Any
    seed: tuple[int, ...]


class SeededBatchSampler:
    """Batch sampler that adds seeds to the indices of another one.

    A seed consists of that of :meth:`begin` and the position of the sample in the epoch, which all
    processes share.
    """

    def __init__(self, batch_sampler: Any, rank: int, world_size: int) -> None:
        self.batch_sampler, self.rank, self.world_size = batch_sampler, rank, world_size
        self.full_length, self.num_skipped = len(batch_sampler), 0

    def __getattr__(self, name: str) -> Any:
        # Such as its sampler and batch size.
        return getattr(self.batch_sampler, name)

    def __len__(self) -> int:
        # Without skipped batches, so that hooks find the end of the epoch.
        return self.full_length - self.num_skipped

    def begin(self, seed: tuple[int, ...], first: int, num_skipped: int = 0) -> None:
        """Set the seed of the run, the epoch, and the first batch; further passes count on."""
        self.seed, self.num_skipped = seed, num_skipped
        self.numbers = count(first)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        size = getattr(self.batch_sampler, 'batch_size', None)
        # Batches of unknown sizes are placed further apart.
        size = size if isinstance(size, int) else 2**20
        for batch in islice(self.batch_sampler, self.num_skipped, None):
            first = next(self.numbers) * size
            # Distributed samplers assign samples to processes in turn.
            positions = count(first * self.world_size + self.rank, self.world_size)
            yield [SeededIndex(index, (*self.seed, next(positions))) for index in batch]


def load_samples(dataset: Any, indices: Iterable[SeededIndex]) -> list:
    """Load the samples of a batch, each with its own seed; ``__getitems__`` of a data set."""
    samples = []
    for index, (seed, *position) in indices:
        seed_all(seed, SAMPLE, *position)
        samples.append(dataset[index])
    return samples


def seed_all(seed: int, purpose: int, *position: int) -> None:
    """Seed Python, NumPy and PyTorch for a position in training, all but the last below 2**32."""
    # Trailing zeros of the entropy have no effect, those of the spawn key do.
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, *position))
    for_python, for_numpy, for_torch = sequence.generate_state(3)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    # torch.manual_seed takes 0.25 ms if a GPU is not initialized yet.
    torch.default_generator.manual_seed(int(for_torch))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(for_torch))
