"""Some images of a data set, as a network gets them."""

import mmengine
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope

from mmevit.datasets.loading import load_readable_images
from mmevit.utils.configs import find_datasets


def find_test_pipeline(cfg):
    """Find the pipeline that test images take.

    Args:
        cfg (Config): A config with a ``test_dataloader``.

    Returns:
        list[dict]: The pipeline.
    """
    return next(find_datasets(cfg.test_dataloader.dataset)).pipeline


def sample_images(cfg, model, split, num_images):
    """Read images as test images are read, evenly spread over the data; shows progress.

    Args:
        cfg (Config): A config with the data of that split and a ``test_dataloader``.
        model (BaseModel): The model, for its data preprocessor.
        split (str): ``'train'``, ``'val'`` or ``'test'``.
        num_images (int): How many at most.

    Yields:
        dict: ``inputs``, one image, (1, 3, H, W), normalised, and its ``data_samples``.
    """
    config = next(find_datasets(cfg[f'{split}_dataloader'].dataset)).copy()
    config.pipeline = find_test_pipeline(cfg)
    load_readable_images(config, on_error='blank')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        dataset = DATASETS.build(config)
    # Data may be sorted by class.
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
    for index in mmengine.track_iter_progress(chosen):
        yield model.data_preprocessor(pseudo_collate([dataset[index]]))
