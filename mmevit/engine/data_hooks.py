"""Hooks that check images and labels in the batches of the data loaders."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmevit.checks.class_counts import count_classes
from mmevit.datasets.loading import LoadReadableImage, UnreadableImages, check_share
from mmevit.utils.configs import type_name
from mmevit.utils.errors import UserError

DATA_HOOKS = dict(unreadable_images='UnreadableImagesHook', invalid_labels='InvalidLabelsHook')


def add_data_hooks(cfg: Config) -> None:
    """Add the hooks of this module to ``default_hooks``, where configs can set their arguments."""
    hooks = cfg.get('default_hooks') or {}
    for name, kind in DATA_HOOKS.items():
        settings = hooks.pop(name, {})
        if settings is not None:  # None disables a hook, but mmengine accepts it only for its own
            hooks[name] = {'type': kind, **settings}
    cfg.default_hooks = hooks


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Count the images that cannot be decoded, and stop the run if there are too many.

    An image that is skipped or replaced by a blank one, see
    :class:`mmevit.datasets.LoadReadableImage`, is counted once, over all worker processes and all
    processes of a distributed run. The count is logged after each training epoch, and is the
    metric ``unreadable_images`` of an evaluation. The commands add this hook; elsewhere set
    ``custom_hooks = [dict(type='UnreadableImagesHook', max_share=0.01)]``.

    Args:
        max_share: Largest share of the images of each data set that may be unreadable, from 0 to 1.

    Raises:
        UserError: If more are unreadable.
    """

    # Before the workers start, and before the metrics are recorded.
    priority = 'HIGHEST'

    def __init__(self, max_share: float = 0.01) -> None:
        self.max_share = max_share

    def before_train(self, runner: Runner) -> None:
        """Share the counts with the workers, which older versions of mmengine start here."""
        self._before_epoch(runner)

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Clear the record of unreadable images that a data set shares with its workers."""
        for part, load in find_loading_steps(getattr(runner, f'{mode}_dataloader').dataset):
            if load.unreadable is None:
                load.unreadable = UnreadableImages(len(part), self.max_share)
            load.unreadable.flags.zero_()

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the count."""
        self._report(runner, 'train', f'Epoch(train) [{runner.epoch + 1}]  ')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Add the count to the metrics."""
        self._report(runner, 'val', '', metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Add the count to the metrics."""
        self._report(runner, 'test', '', metrics)

    def _report(self, runner: Runner, mode: str, prefix: str, metrics: dict | None = None) -> None:
        count, num_images = self.count(getattr(runner, f'{mode}_dataloader').dataset)
        # CheckpointHook would choose the best checkpoint by this count, if it were the only metric.
        if num_images and metrics:
            metrics['unreadable_images'] = count
        elif num_images:
            runner.logger.info(f'{prefix}unreadable_images: {count} of {num_images}')

    def count(self, dataset: Any) -> tuple[int, int]:
        """Count the unreadable images over all processes, and all images."""
        count = num_images = 0
        for _, load in find_loading_steps(dataset):
            flags = load.unreadable.flags.clone()
            all_reduce(flags, 'max')
            check_share(int(flags.sum()), len(flags), self.max_share)
            count, num_images = count + int(flags.sum()), num_images + len(flags)
        return count, num_images


def find_loading_steps(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each data set inside wrappers that uses LoadReadableImage, with that transform."""
    parts = list_wrapped(dataset)
    for part in parts:
        yield from find_loading_steps(part)
    steps = () if parts else getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    yield from ((dataset, step) for step in steps if isinstance(step, LoadReadableImage))


def list_wrapped(dataset: Any) -> list:
    """List the data sets that a wrapper has; other attributes of these names do not count."""
    parts = getattr(dataset, 'datasets', None)
    parts = list(parts.values()) if isinstance(parts, Mapping) else parts
    if not isinstance(parts, list | tuple):
        parts = [getattr(dataset, 'dataset', None)]
    return [
        part
        for part in parts
        if hasattr(part, '__getitem__')
        and hasattr(part, '__len__')
        and not isinstance(part, Mapping | Sequence)
    ]


@HOOKS.register_module()
class InvalidLabelsHook(Hook):
    """Stop a run at a label or segmentation map that does not fit the model.

    Training would end in an index error, or on a GPU in a failed assertion, and metrics would be
    too low without a warning. The commands add this hook, which checks classifiers and segmentors;
    elsewhere set ``custom_hooks = [dict(type='InvalidLabelsHook')]``.

    Raises:
        UserError: If a label does not fit.
    """

    num_classes: Any  # a number, or None if it is unknown

    def before_run(self, runner: Runner) -> None:
        """Read the number of classes from the config of the model."""
        model = runner.cfg.get('model') or {}
        self.num_classes, self.ignored = count_classes(model)
        self.is_retriever = type_name(model) == 'ImageToImageRetriever'

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        """Check the labels of a batch."""
        if self.num_classes is None or not isinstance(data_batch, dict):
            return
        # The labels of a retriever's queries are indices of images.
        has_classes = mode == 'train' or not self.is_retriever
        samples, images = (flatten(data_batch.get(name)) for name in ('data_samples', 'inputs'))
        for sample, image in zip(samples, chain(images, repeat(None)), strict=False):
            if 'gt_label' in sample and has_classes:
                self.check(sample.gt_label, sample.get('img_path'))
            if 'gt_sem_seg' in sample:
                self.check_map(sample, image)

    def check_map(self, sample: Any, image: torch.Tensor | None) -> None:
        """Check the segmentation map of a sample, which may be cropped and resized."""
        path, labels = sample.get('seg_map_path'), sample.gt_sem_seg.data
        if labels.shape[0] != 1 or labels.ndim != 3:
            raise UserError(
                f'The segmentation map {path} has {labels.shape[-1]} channels. It must have one '
                'channel, with the label of each pixel.'
            )
        sizes = [sample.get(name) for name in ('img_shape', 'pad_shape', 'ori_shape')]
        sizes = [tuple(size[:2]) for size in sizes if size is not None]
        # Transforms of other libraries, such as Albu, do not update the sizes above.
        if isinstance(image, torch.Tensor):
            sizes.append(tuple(image.shape[-2:]))
        if sizes and tuple(labels.shape[1:]) not in sizes:
            raise UserError(
                f'The segmentation map {path} has a different size than its image '
                f'{sample.get("img_path")}. Use a map of the same size.'
            )
        self.check(labels, path)

    def check(self, labels: torch.Tensor, path: str | None) -> None:
        """Check that there is a class for each label."""
        values = labels.flatten().long()
        # Ten times faster than comparing each pixel.
        if values.numel() and values.min() >= 0 and values.max() < 2**16:
            values = values.bincount().nonzero()
        wrong = ((values < 0) | (values >= self.num_classes)) & (values != self.ignored)
        if wrong.any():
            raise UserError(
                f'{path} has the label {int(values[wrong][0])}, but the model has '
                f'{self.num_classes} classes, 0 to {self.num_classes - 1}. Fix the label, or '
                'num_classes of the head, or for segmentation maps reduce_zero_label.'
            )


def flatten(samples: Any) -> Iterator[Any]:
    """Yield the samples or images of a batch, which are in lists if images have several views."""
    if isinstance(samples, list | tuple):
        for part in samples:
            yield from flatten(part)
    elif samples is not None and not isinstance(samples, dict):
        yield samples
