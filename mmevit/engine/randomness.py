"""Randomness that depends on where in training it is drawn, and on nothing that ran before."""

import random
from itertools import count, islice

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop


@HOOKS.register_module()
class ResumableRandomnessHook(Hook):
    """Draw all random numbers of training from the seed and the place in the schedule.

    What is drawn for a sample depends on the seed, the epoch and its place in it; what the model
    draws, on the seed, the iteration and the process. So a resumed run draws what the undisturbed
    one would have, whatever the state of its workers was, and so do several processes that share
    the batches of one, but for what their models draw. A run that was resumed within an epoch goes
    on with the batches that are left of it. The tools add it; elsewhere::

        custom_hooks = [dict(type='ResumableRandomnessHook')]
    """

    # Before what draws in the same places.
    priority = 'VERY_HIGH'

    def before_train(self, runner):
        """Number the samples, and seed each where it is loaded."""
        dataloader = runner.train_dataloader
        self.batches = NumberedBatches(dataloader.batch_sampler, runner.rank, runner.world_size)
        # DataLoader forbids to set it, lest the workers have the former; none has been started.
        vars(dataloader)['batch_sampler'] = self.batches
        dataloader.dataset.__getitems__ = SeededSamples(dataloader.dataset)

    def before_train_epoch(self, runner):
        """Begin the numbers where the epoch begins, or where it was left."""
        done = runner.iter
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch:
            done %= len(self.batches)
        # Where there are no epochs, mmengine itself passes over what is done.
        self.batches.begin((runner.seed, runner.epoch), done, num_skipped=done if by_epoch else 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed what the model draws."""
        seed_all(runner.seed, runner.iter, runner.rank)


class NumberedBatches:
    """Batches of another sampler, in which each index tells the place of its sample in the epoch.

    Args:
        batch_sampler (Iterable[list[int]]): The other sampler.
        rank (int): Number of this process, 0 or more.
        world_size (int): How many processes share an epoch.
    """

    def __init__(self, batch_sampler, rank, world_size):
        self.batch_sampler, self.rank, self.world_size = batch_sampler, rank, world_size

    def __getattr__(self, name):
        # For those who ask for its sampler or the size of its batches.
        return getattr(self.batch_sampler, name)

    def __len__(self):
        return len(self.batch_sampler)

    def begin(self, seed, first, num_skipped):
        """Set what the next pass over the batches is.

        Args:
            seed (tuple[int]): What numbers are drawn from besides the place.
            first (int): Number of its first batch.
            num_skipped (int): How many batches to leave out.
        """
        self.seed, self.first, self.num_skipped = seed, first, num_skipped

    def __iter__(self):
        # Samplers deal the samples out to the processes, one to each in turn.
        places = count(self.first * self.batch_size * self.world_size + self.rank, self.world_size)
        for batch in islice(self.batch_sampler, self.num_skipped, None):
            yield [NumberedIndex(index, (*self.seed, next(places))) for index in batch]


class NumberedIndex(int):
    """Index of a sample that carries what its randomness is drawn from.

    Args:
        index (int): The index.
        seed (tuple[int]): Seed, epoch and place in the epoch.
    """

    def __new__(cls, index, seed):
        """Make the number."""
        number = super().__new__(cls, index)
        number.seed = seed
        return number

    def __getnewargs__(self):
        return int(self), self.seed


class SeededSamples:
    """Loads the samples of a batch, each with numbers of its own; what PyTorch calls a data set by.

    Args:
        dataset (Dataset): The data set.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __call__(self, indices):
        """Load samples.

        Args:
            indices (list[NumberedIndex]): Which.

        Returns:
            list: The samples.
        """
        return [self.load(index) for index in indices]

    def load(self, index):
        """Load a sample."""
        seed_all(*index.seed)
        return self.dataset[int(index)]


def seed_all(*seed):
    """Seed Python, NumPy and PyTorch.

    Args:
        *seed (int): Numbers, 0 or more; where any differs, all that is drawn does.

    Example:
        >>> seed_all(0, 7)
        >>> first = random.random()
        >>> seed_all(0, 8)
        >>> first == random.random()
        False
    """
    for_python, for_numpy, for_torch = np.random.SeedSequence(seed).generate_state(3)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    # torch.manual_seed takes a quarter of a millisecond where a GPU might yet be used.
    torch.default_generator.manual_seed(int(for_torch))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(for_torch))
