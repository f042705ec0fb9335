"""Check that batch norm can train on every batch."""

import copy
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmevit.utils.errors import ConfigError
from mmevit.utils.pytorch import unwrap

LOCAL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_batch_sizes(runner: Runner) -> None:
    """Raise ConfigError if batch norm would get a single value per channel in training.

    Whether it does on a batch of one image depends on the size of its maps, so that such a batch,
    if there is one, is run with a copy of the model. The train loop must be built.
    """
    loop: Any = runner.train_loop
    problem = find_single_images(loop)
    model: Any = unwrap(runner.model)
    # Of several processes, synchronized layers see the images of all.
    norm_types = _BatchNorm if runner.world_size == 1 else LOCAL_NORMS
    norms = [module for module in model.train().modules() if isinstance(module, norm_types)]
    if problem is None or not any(norm.training for norm in norms):
        return
    batch = loop.dataloader.collate_fn([loop.dataloader.dataset[0]])
    model = copy.deepcopy(model)
    try:
        with torch.no_grad():
            model._run_forward(model.data_preprocessor(batch, training=True), mode='loss')
    except ValueError as error:
        if 'Expected more than 1 value per channel' in str(error):
            raise ConfigError(problem) from error
        raise


def find_single_images(loop: BaseLoop) -> str | None:
    """Explain why a process gets a batch of one image, None if it does not."""
    batches = loop.dataloader.batch_sampler
    sampler: Any = getattr(batches, 'sampler', None)
    size: Any = getattr(batches, 'batch_size', None)
    if size == 1:
        return (
            'train_dataloader.batch_size is 1, but batch norm needs two or more images in each '
            'process. Set a larger batch size.'
        )
    is_finite = isinstance(loop, EpochBasedTrainLoop) or isinstance(sampler, DefaultSampler)
    # Without round_up the processes differ in their number of images, but all must agree to try.
    is_equal = getattr(sampler, 'world_size', 1) == 1 or getattr(sampler, 'round_up', True)
    is_full = not isinstance(size, int) or getattr(batches, 'drop_last', True)
    if not is_finite or not is_equal or is_full or len(sampler) % size != 1:
        return None
    return (
        f'The last batch of an epoch has one image ({len(sampler)} images in each process, '
        f'batch size {size}), but batch norm needs two or more. Set '
        'train_dataloader.drop_last=True or another train_dataloader.batch_size.'
    )
