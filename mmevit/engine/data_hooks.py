"""Hooks that look at what the data loaders give."""

from collections.abc import Iterator
from itertools import chain, repeat

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmevit.checks.class_counts import count_classes
from mmevit.datasets.loading import LoadReadableImage, UnreadableImages, check_share
from mmevit.utils.configs import type_name
from mmevit.utils.errors import UserError


def add_data_hooks(cfg):
    """Add the hooks of this module to the default hooks of a config, which may set their arguments.

    Args:
        cfg (Config): The config.
    """
    hooks = cfg.get('default_hooks') or {}
    for name, kind in dict(
        unreadable_images='UnreadableImagesHook', invalid_labels='InvalidLabelsHook'
    ).items():
        hooks[name] = {'type': kind, **(hooks.get(name) or {})}
    cfg.default_hooks = hooks


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Count the images that cannot be decoded, and end the run where there are too many.

    An image that is skipped or replaced by a blank one, see
    :class:`mmevit.datasets.LoadReadableImage`, is counted once, over all worker processes and all
    processes of a distributed run. The count is logged after each epoch of training, and is the
    metric ``unreadable_images`` of an evaluation. The tools add the hook; elsewhere::

        custom_hooks = [dict(type='UnreadableImagesHook', max_share=0.01)]

    Args:
        max_share: Largest share of the images of each data set that may be unreadable, from 0 to 1.
    """

    # Before the workers start, and before the metrics are recorded.
    priority = 'HIGHEST'

    def __init__(self, max_share: float = 0.01):
        self.max_share = max_share

    def before_train(self, runner):
        """Let the workers share what they find."""
        self.share(runner.train_dataloader.dataset)

    def before_val(self, runner):
        """Let the workers share what they find."""
        self.share(runner.val_dataloader.dataset)

    def before_test(self, runner):
        """Let the workers share what they find."""
        self.share(runner.test_dataloader.dataset)

    def share(self, dataset):
        """Give each data set a place to note unreadable images, which its workers keep."""
        for part, load in find_loading(dataset):
            if load.unreadable is None:
                load.unreadable = UnreadableImages(len(part), self.max_share)
            load.unreadable.flags.zero_()

    def before_train_epoch(self, runner):
        """Count from 0."""
        self.share(runner.train_dataloader.dataset)

    def after_train_epoch(self, runner):
        """Log the count.

        Raises:
            UserError: If it is too large.
        """
        count, num_images = self.count(runner.train_dataloader.dataset)
        if num_images:
            runner.logger.info(
                f'Epoch(train) [{runner.epoch + 1}]  unreadable_images: {count} of {num_images}'
            )

    def after_val_epoch(self, runner, metrics=None):
        """Add the count to the metrics.

        Raises:
            UserError: If it is too large.
        """
        self.add_to(metrics, runner, runner.val_dataloader.dataset)

    def after_test_epoch(self, runner, metrics=None):
        """Add the count to the metrics.

        Raises:
            UserError: If it is too large.
        """
        self.add_to(metrics, runner, runner.test_dataloader.dataset)

    def add_to(self, metrics, runner, dataset):
        """Add the count to the metrics."""
        count, num_images = self.count(dataset)
        # An empty dict tells that there is nothing by which a checkpoint could be the best.
        if num_images and metrics:
            metrics['unreadable_images'] = count
        elif num_images:
            runner.logger.info(f'unreadable_images: {count} of {num_images}')

    def count(self, dataset) -> tuple[int, int]:
        """Count the unreadable images of all processes, and the images.

        Raises:
            UserError: If they are too many.
        """
        counts = []
        for _, load in find_loading(dataset):
            flags = load.unreadable.flags.clone()
            all_reduce(flags, 'max')
            counts.append((int(flags.sum()), len(flags)))
            check_share(*counts[-1], self.max_share)
        return sum(count for count, _ in counts), sum(length for _, length in counts)


def find_loading(dataset) -> Iterator[tuple]:
    """Yield the data sets within wrappers that load images by LoadReadableImage, with that step."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if parts[0] is not None:
        for part in parts:
            yield from find_loading(part)
        return
    for step in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        if isinstance(step, LoadReadableImage):
            yield dataset, step


@HOOKS.register_module()
class InvalidLabelsHook(Hook):
    """End a run at a label or a segmentation map that does not fit the model.

    Training would end in an index error, or on a GPU in a failed assertion, and a metric would be
    too low without a word. The tools add the hook for classifiers and segmentors; elsewhere::

        custom_hooks = [dict(type='InvalidLabelsHook')]
    """

    def before_run(self, runner):
        """Look up the labels that the model has."""
        model = runner.cfg.get('model') or {}
        self.num_classes, self.ignored = count_classes(model)
        self.is_retriever = type_name(model) == 'ImageToImageRetriever'

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        """Look at the labels of a batch.

        Raises:
            UserError: If one does not fit.
        """
        if self.num_classes is None or not isinstance(data_batch, dict):
            return
        # Queries of a retriever are labelled with the indices of images.
        has_classes = mode == 'train' or not self.is_retriever
        samples, images = (flatten(data_batch.get(name)) for name in ('data_samples', 'inputs'))
        for sample, image in zip(samples, chain(images, repeat(None)), strict=False):
            if 'gt_label' in sample and has_classes:
                self.check(sample.gt_label, sample.get('img_path'))
            if 'gt_sem_seg' in sample:
                self.check_map(sample, image)

    def check_map(self, sample, image):
        """Check the segmentation map of a sample, which may have been cropped and resized."""
        path, labels = sample.get('seg_map_path'), sample.gt_sem_seg.data
        if labels.shape[0] != 1 or labels.ndim != 3:
            raise UserError(
                f'The segmentation map {path} has {labels.shape[-1]} channels. Write one channel, '
                'the number of a class at each pixel.'
            )
        sizes = [sample.get(name) for name in ('img_shape', 'pad_shape', 'ori_shape')]
        sizes = [tuple(size[:2]) for size in sizes if size is not None]
        # Transforms of other libraries, such as Albu, leave the sizes above as they are.
        if isinstance(image, torch.Tensor):
            sizes.append(tuple(image.shape[-2:]))
        if sizes and tuple(labels.shape[1:]) not in sizes:
            raise UserError(
                f'The segmentation map {path} has another size than its image '
                f'{sample.get("img_path")}. Write one of the same size.'
            )
        self.check(labels, path)

    def check(self, labels: torch.Tensor, path: str | None):
        """Check that there is a class for each label."""
        values = labels.flatten().long()
        # Counting takes a tenth of the time of comparing each pixel.
        if values.numel() and values.min() >= 0 and values.max() < 2**16:
            values = values.bincount().nonzero()
        wrong = ((values < 0) | (values >= self.num_classes)) & (values != self.ignored)
        if wrong.any():
            raise UserError(
                f'{path} has the label {int(values[wrong][0])}, but the model has '
                f'{self.num_classes} classes, 0 to {self.num_classes - 1}. Fix the label, or '
                'num_classes of the head; for segmentation maps see reduce_zero_label too.'
            )


def flatten(samples) -> Iterator:
    """Yield the samples or images of a batch; those of several views of an image come in lists."""
    if isinstance(samples, (list, tuple)):
        for part in samples:
            yield from flatten(part)
    elif samples is not None and not isinstance(samples, dict):
        yield samples
