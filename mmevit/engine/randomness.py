"""Randomness that depends on where in training it is drawn, and on nothing that ran before."""

import random
from enum import IntEnum
from itertools import count, islice
from typing import NamedTuple

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
    on with the batches that are left of it. Transforms that keep images in their worker, such as
    mmdet's ``CachedMosaic``, still depend on what it has seen. The tools add the hook; elsewhere::

        custom_hooks = [dict(type='ResumableRandomnessHook')]
    """

    # Before what draws in the same places.
    priority = 'VERY_HIGH'
    # Of the epoch in which a run was resumed.
    num_done = 0

    def before_save_checkpoint(self, runner, checkpoint):
        """Keep the length of an epoch, by which to tell where in it a checkpoint was saved."""
        loader = runner.train_dataloader
        length = getattr(loader.batch_sampler, 'full_length', len(loader))
        checkpoint['meta']['batches_per_epoch'] = length

    def after_load_checkpoint(self, runner, checkpoint):
        """Restart the epoch if it has another length now, at the iteration where it then begins."""
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

    def before_train(self, runner):
        """Number the samples, and seed each where it is loaded."""
        dataloader = runner.train_dataloader
        self.batches = NumberedBatches(dataloader.batch_sampler, runner.rank, runner.world_size)
        # DataLoader forbids to set it, lest the workers have the former; none has been started.
        vars(dataloader)['batch_sampler'] = self.batches
        dataloader.dataset.__getitems__ = SeededSamples(dataloader.dataset)
        endless = getattr(runner.train_loop, 'dataloader_iterator', None)
        if getattr(endless, '_iterator', None) is not None:
            # Older versions of mmengine begin before training does, with workers that may persist,
            # and with indices that end when their first reader does.
            endless._iterator = dataloader._iterator = None
            if hasattr(dataloader.sampler, '_indices_of_rank'):
                dataloader.sampler.indices = dataloader.sampler._indices_of_rank()
            self.batches.begin((runner.seed, 0), first=0)
            endless._iterator = iter(dataloader)

    def before_train_epoch(self, runner):
        """Begin the numbers where the epoch begins, or where it was left."""
        endless = getattr(runner.train_loop, 'dataloader_iterator', None)
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            done, self.num_done = self.num_done, 0
            self.batches.begin((runner.seed, runner.epoch), done, num_skipped=done)
        elif endless is None or can_skip(endless):
            self.batches.begin((runner.seed, 0), first=runner.iter)
        elif endless._iterator is None:
            # mmengine goes through all batches that are done.
            self.batches.begin((runner.seed, 0), first=0)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed what the model draws."""
        seed_all(runner.seed, Stream.MODEL, runner.iter, runner.rank)


def can_skip(endless):
    """Whether the batches of a loop without epochs pass over what is done in the sampler alone.

    Args:
        endless (Iterator): mmengine's iterator over the batches.

    Returns:
        bool: Whether they do.
    """
    return hasattr(endless, '_resolve_sampler') and endless._resolve_sampler() is not None


class NumberedBatches:
    """Batches of another sampler, in which each index has the place of its sample in the epoch.

    Args:
        batch_sampler (Iterable[list]): The other sampler.
        rank (int): Number of this process, 0 or more.
        world_size (int): How many processes share an epoch.
    """

    def __init__(self, batch_sampler, rank, world_size):
        self.batch_sampler, self.rank, self.world_size = batch_sampler, rank, world_size
        self.full_length, self.num_skipped = len(batch_sampler), 0

    def __getattr__(self, name):
        # For those who ask for its sampler or the size of its batches.
        return getattr(self.batch_sampler, name)

    def __len__(self):
        # Without those that are left out, so that hooks find the end of the epoch.
        return self.full_length - self.num_skipped

    def begin(self, seed, first, num_skipped=0):
        """Set what the next pass over the batches is.

        Args:
            seed (tuple[int]): What numbers are drawn from besides the place.
            first (int): Number of its first batch.
            num_skipped (int): How many batches to leave out. Defaults to 0.
        """
        self.seed, self.num_skipped = seed, num_skipped
        # Goes on through further passes, where there are no epochs.
        self.numbers = count(first)

    def __iter__(self):
        size = getattr(self.batch_sampler, 'batch_size', None)
        # Where batches have no one size, their places lie further apart.
        size = size if isinstance(size, int) else 2**20
        for batch in islice(self.batch_sampler, self.num_skipped, None):
            first = next(self.numbers) * size
            # Samplers deal the samples out to the processes, one to each in turn.
            places = count(first * self.world_size + self.rank, self.world_size)
            yield [SeededIndex(index, (*self.seed, next(places))) for index in batch]


class SeededIndex(NamedTuple):
    """An index into a data set, and what the randomness of its sample is drawn from."""

    index: object
    seed: tuple


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
            indices (list[SeededIndex]): Which.

        Returns:
            list: The samples.
        """
        return [self.load(*index) for index in indices]

    def load(self, index, seed):
        """Load a sample."""
        run_seed, *place = seed
        seed_all(run_seed, Stream.SAMPLE, *place)
        return self.dataset[index]


class Stream(IntEnum):
    """What random numbers are for; each has seeds of its own."""

    SAMPLE = 0
    MODEL = 1


def seed_all(seed, stream, *place):
    """Seed Python, NumPy and PyTorch.

    Args:
        seed (int): The seed of the run, 0 or more.
        stream (Stream): What the numbers are for.
        *place (int): Where in training, 0 or more each, all but the last below 2**32.

    Example:
        >>> seed_all(0, Stream.MODEL, 7)
        >>> first = random.random()
        >>> seed_all(0, Stream.MODEL, 8)
        >>> first == random.random()
        False
    """
    # Unlike the entropy, which is padded with zeros, keys that end in other zeros differ.
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, *place))
    for_python, for_numpy, for_torch = sequence.generate_state(3)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    # torch.manual_seed takes a quarter of a millisecond where a GPU might yet be used.
    torch.default_generator.manual_seed(int(for_torch))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(for_torch))
