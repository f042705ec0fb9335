import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler

from mmevit.engine.randomness import (
    MODEL,
    SAMPLE,
    SeededBatchSampler,
    SeededIndex,
    load_samples,
    seed_all,
)


class Draws:
    """A data set whose samples are their index and a random number of each library."""

    def __getitem__(self, index):
        return index, np.random.rand(), torch.rand(()).item()


def number(batches, rank=0, world_size=1):
    numbered = SeededBatchSampler(batches, rank, world_size)
    numbered.begin((0, 0), 0)
    return numbered


def seeds(*args, **kwargs):
    return [[index.seed for index in batch] for batch in number(*args, **kwargs)]


def test_several_processes_have_the_seeds_of_one():
    alone = seeds(BatchSampler(range(20), 8, drop_last=False))
    parts = [
        seeds(BatchSampler(range(rank, 20, 2), 4, drop_last=False), rank=rank, world_size=2)
        for rank in range(2)
    ]
    for whole, first, second in zip(alone, *parts, strict=True):
        assert sorted(whole) == sorted(first + second)


def test_repeated_sample_has_different_seeds():
    (batch,) = number([[3, 3, 3]])
    samples = load_samples(Draws(), batch)
    assert [index for index, *_ in samples] == [3, 3, 3]
    assert len({sample[1:] for sample in samples}) == 3


@pytest.mark.parametrize('size', [None, [2, 1]], ids=['unknown', 'list'])
def test_batches_of_different_sizes_have_different_positions(size):
    class Batches(list):
        batch_size = size

    found = seeds(Batches([[(0, 1), (0, 2)], [(5, 1)], [(7, 3), (7, 4)]]))
    assert len({seed for batch in found for seed in batch}) == 5


def test_indices_of_any_type_are_not_changed():
    (batch,) = number([[(0, 7)]])
    ((index, *_),) = load_samples(Draws(), batch)
    assert index == (0, 7)


def test_further_passes_over_finite_data_have_other_seeds():
    numbered = number(BatchSampler(range(8), 4, drop_last=False))
    first, second = ({index.seed for batch in numbered for index in batch} for _ in range(2))
    assert not first & second


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        # The sample at place 5 of epoch 3, and what the model draws in iteration 3 on process 5.
        ((SAMPLE, 3, 5), (MODEL, 3, 5)),
        ((SAMPLE, 3, 5), (SAMPLE, 3, 5, 0)),
        ((SAMPLE, 0, 0), (MODEL, 0, 0)),
        ((SAMPLE, 0, 1), (MODEL, 0)),
        ((SAMPLE, 1, 2**32), (SAMPLE, 1, 0)),
    ],
)
@pytest.mark.parametrize('seed', [0, 3, 2**31 - 1])
def test_samples_and_model_steps_have_different_seeds(seed, first, second):
    drawn = []
    for place in (first, second):
        seed_all(seed, *place)
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert all(ours != other for ours, other in zip(*drawn, strict=True))


def test_samples_have_their_own_seeds():
    (((index, seed),),) = number([[7]])
    ((_, drawn, _),) = load_samples(Draws(), [SeededIndex(index, seed)])
    seed_all(0, SAMPLE, *seed[1:])
    assert drawn == np.random.rand()
