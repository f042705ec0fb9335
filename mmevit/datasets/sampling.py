"""Sample images of a data set as the network receives them."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from mmevit.datasets.loading import load_readable_images
from mmevit.utils.configs import default_scope, list_dataset_configs
from mmevit.utils.errors import ConfigError
from mmevit.utils.progress import show_progress


def find_test_pipeline(cfg: Config) -> list[Any]:
    """Find the pipeline of ``cfg.test_dataloader``, or raise ConfigError."""
    pipeline = list_dataset_configs(cfg, 'test')[0].get('pipeline')
    if pipeline is None:
        raise ConfigError('Incomplete config: the data set of test_dataloader has no pipeline.')
    return pipeline


def sample_images(cfg: Config, model: Any, split: str, num_images: int) -> Iterator[dict]:
    """Read at most ``num_images`` evenly spaced images with the test pipeline; shows progress.

    Yields:
        ``inputs``, one image normalized by the model, (1, 3, H, W), and its ``data_samples``.
    """
    config = list_dataset_configs(cfg, split)[0].copy()
    config['pipeline'] = find_test_pipeline(cfg)
    load_readable_images(config, on_error='blank')
    with default_scope(cfg):
        dataset = DATASETS.build(config)
    # Data may be sorted by class.
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
    for index in show_progress(chosen, 'Reading images'):
        yield model.data_preprocessor(pseudo_collate([dataset[index]]))
