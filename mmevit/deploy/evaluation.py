"""Exported files in the place of a model, so that the ordinary loop evaluates them."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch.nn.functional import pad

from mmevit.errors import ConfigError

from .exporting import load_exported

# What a whole model of each library does.
TASKS = dict(mmpretrain='classification', mmdet='detection')


def evaluate_exported(cfg, path):
    """Have a config evaluate an exported file.

    Args:
        cfg (Config): Config of a classifier or a detector, whose model is replaced; the images are
            read and normalised as it says.
        path (str): The file.

    Raises:
        ConfigError: If the file holds something else, such as a backbone.
    """
    task = load_exported(path).metadata.get('task')
    expected = TASKS.get(cfg.get('default_scope'))
    if task != expected:
        raise ConfigError(
            f'{path} is for {task or "an unknown task"}, and the config for {expected}: '
            'only whole classifiers and detectors that tools/export.py wrote can be evaluated.'
        )
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # As mmpretrain's classifiers complete it.
    preprocessor.setdefault('type', 'ClsDataPreprocessor')
    cfg.model = dict(
        type='ExportedClassifier' if task == 'classification' else 'ExportedDetector',
        file=path,
        data_preprocessor=preprocessor,
    )
    # What they do, such as averaging weights, is for models that are trained.
    cfg.custom_hooks = []


class ExportedModel(BaseModel):
    """A model that is an exported file.

    Args:
        file (str): The file, see :func:`mmevit.deploy.load_exported`.
        data_preprocessor (dict): Config of what normalises and stacks the images.
    """

    def __init__(self, file, data_preprocessor):
        super().__init__(data_preprocessor)
        self.session = load_exported(file)
        self.sizes = self.session.metadata['input']['shape']

    def run(self, images, *others):
        """Run the file on a batch of any size, even if it takes only one.

        Args:
            images (Tensor): (N, 3, H, W).
            *others (Tensor): Further inputs (N, ...).

        Returns:
            list[Tensor]: Its outputs, on the device of the images.

        Raises:
            ConfigError: If the images are larger than the file takes.
        """
        num_images, size = self.sizes[0] or len(images), [self.sizes[2], self.sizes[3]]
        missing = [
            (wanted or given) - given for wanted, given in zip(size, images.shape[2:], strict=True)
        ]
        if min(missing) < 0:
            raise ConfigError(
                f'The exported file takes images of {size[0]}x{size[1]} pixels, and these have '
                f'{images.shape[2]}x{images.shape[3]}: export it with --dynamic batch size.'
            )
        inputs = (pad(images, (0, missing[1], 0, missing[0])), *others)
        parts = zip(*(tensor.split(num_images) for tensor in inputs), strict=True)
        outputs = [self.run_part(part, num_images) for part in parts]
        return [torch.cat(parts).to(images.device) for parts in zip(*outputs, strict=True)]

    def run_part(self, inputs, num_images):
        """Run one batch, filled up with the first of it."""
        given = len(inputs[0])
        index = torch.arange(num_images) % given
        return [output[:given] for output in self.session(*(tensor[index] for tensor in inputs))]


@MODELS.register_module()
class ExportedClassifier(ExportedModel):
    """An exported classifier in mmpretrain's loop; see :class:`ExportedModel`."""

    def forward(self, inputs, data_samples=None, mode='predict'):
        """Classify images (N, 3, H, W), normalised; as mmpretrain's classifiers do."""
        from mmpretrain.models.heads import ClsHead

        (scores,) = self.run(inputs)
        return ClsHead()._get_predictions(scores, data_samples)


@MODELS.register_module()
class ExportedDetector(ExportedModel):
    """An exported detector in mmdet's loop; see :class:`ExportedModel`."""

    def forward(self, inputs, data_samples=None, mode='predict'):
        """Detect in images (N, 3, H, W), normalised; as mmdet's detectors do."""
        sizes = inputs.new_tensor([sample.img_shape[:2] for sample in data_samples])
        detections = zip(*self.run(inputs, sizes), strict=True)
        for sample, (boxes, scores, labels) in zip(data_samples, detections, strict=True):
            scale = boxes.new_tensor(sample.scale_factor).repeat(2)
            found = labels >= 0
            sample.pred_instances = InstanceData(
                bboxes=boxes[found] / scale, scores=scores[found], labels=labels[found]
            )
        return data_samples
