"""Check that batch norm can train on every batch."""

import copy

import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmevit.utils.errors import ConfigError
from mmevit.utils.models import unwrap

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_batch_sizes(runner):
    """Check that no batch of training has one value per channel where batch norm needs two.

    Only if there is a batch of one image, it is tried with a copy of the model: whether batch norm
    can train on one image depends on the size of its maps.

    Args:
        runner (Runner): The runner, with its train loop built.

    Raises:
        ConfigError: If there is such a batch.
    """
    reason = find_single_images(runner.train_loop)
    model = unwrap(runner.model)
    # Of several processes, synchronised layers see the images of all.
    kinds = _BatchNorm if runner.world_size == 1 else PLAIN
    norms = [module for module in model.train().modules() if isinstance(module, kinds)]
    if reason is None or not any(norm.training for norm in norms):
        return
    loader = runner.train_dataloader
    batch = loader.collate_fn([loader.dataset[0]])
    model = copy.deepcopy(model)
    try:
        with torch.no_grad():
            model._run_forward(model.data_preprocessor(batch, training=True), mode='loss')
    except ValueError as error:
        if 'Expected more than 1 value per channel' in str(error):
            raise ConfigError(reason) from error
        raise


def find_single_images(loop):
    """Find out whether a process gets a batch of one image.

    Args:
        loop (BaseLoop): The train loop.

    Returns:
        str | None: Why and what to do, or None if no batch has one image.
    """
    batches = loop.dataloader.batch_sampler
    sampler, size = getattr(batches, 'sampler', None), getattr(batches, 'batch_size', None)
    if size == 1:
        return (
            'train_dataloader.batch_size is 1, but batch norm needs two images or more in each '
            'process. Set a larger batch size.'
        )
    is_finite = isinstance(loop, EpochBasedTrainLoop) or isinstance(sampler, DefaultSampler)
    # Without rounding up, processes have other numbers of images, and all must agree on a trial.
    is_shared = getattr(sampler, 'world_size', 1) == 1 or getattr(sampler, 'round_up', True)
    if not is_finite or not is_shared or not isinstance(size, int):
        return None
    if getattr(batches, 'drop_last', True):
        return None
    if len(sampler) % size == 1:
        return (
            f'The last batch of an epoch has one image ({len(sampler)} images in each process, '
            f'batch size {size}), but batch norm needs two or more. Set '
            'train_dataloader.drop_last=True or another train_dataloader.batch_size.'
        )
    return None
