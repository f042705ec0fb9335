"""Exported files in the place of a model, so that the ordinary loop evaluates them."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch.nn.functional import pad

from mmevit.utils.errors import ConfigError

from .exporting import load_exported

# What a whole model of each library does.
TASKS = dict(mmpretrain='classification', mmdet='detection')


def evaluate_exported(cfg, path, trust=False):
    """Have a config evaluate an exported file.

    Args:
        cfg (Config): Config of a classifier or a detector, whose model is replaced; the images are
            read and normalised as it says.
        path (str): The file.
        trust (bool): Whether the file may hold native code. Defaults to False.

    Raises:
        ConfigError: If the file holds something else, such as a backbone.
    """
    task = load_exported(path, trust=trust).metadata.get('task')
    expected = TASKS.get(cfg.get('default_scope'))
    if task not in TASKS.values() or task != expected:
        raise ConfigError(
            f'{path} is for {task or "an unknown task"}, and the config for '
            f'{expected or cfg.get("default_scope")}: '
            'only whole classifiers and detectors that tools/export.py wrote can be evaluated.'
        )
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    # As mmpretrain's classifiers complete it.
    preprocessor.setdefault('type', 'ClsDataPreprocessor')
    model = dict(file=path, trust=trust, data_preprocessor=preprocessor)
    if task == 'classification':
        cfg.model = dict(type='ExportedClassifier', head=cfg.model.head, **model)
    else:
        cfg.model = dict(type='ExportedDetector', **model)
    # What they do, such as averaging weights, is for models that are trained.
    cfg.custom_hooks = []


class ExportedModel(BaseModel):
    """A model that is an exported file.

    Args:
        file (str): The file, see :func:`mmevit.deploy.load_exported`.
        data_preprocessor (dict): Config of what normalises and stacks the images.
        trust (bool): Whether the file may hold native code. Defaults to False.
    """

    def __init__(self, file, data_preprocessor, trust=False):
        super().__init__(data_preprocessor)
        self.session = load_exported(file, trust=trust)
        self.batch_size, _, *self.size = self.session.metadata['input']['shape']

    def run(self, images, *others):
        """Run the file on any number of images, even if it takes only one.

        Args:
            images (Tensor): (N, C, H, W).
            *others (Tensor): Further inputs (N, ...).

        Returns:
            list[Tensor]: Its outputs, on the device of the images.

        Raises:
            ConfigError: If the images have another size than the file takes.
        """
        given = list(images.shape[2:])
        if self.size not in ([None, None], given):
            raise ConfigError(
                f'The exported file takes images of {self.size[0]}x{self.size[1]} pixels, and '
                f'these have {given[0]}x{given[1]}: export it with --dynamic batch size.'
            )
        num_images = self.batch_size or len(images)
        parts = zip(*(tensor.cpu().split(num_images) for tensor in (images, *others)), strict=True)
        outputs = [self.run_part(part, num_images) for part in parts]
        return [torch.cat(parts).to(images.device) for parts in zip(*outputs, strict=True)]

    def run_part(self, inputs, num_images):
        """Run one batch, filled up with the first of it."""
        given = len(inputs[0])
        index = torch.arange(num_images) % given
        return [output[:given] for output in self.session(*(tensor[index] for tensor in inputs))]


@MODELS.register_module()
class ExportedClassifier(ExportedModel):
    """An exported classifier in mmpretrain's loop.

    Args:
        head (dict): Config of the head, which makes predictions of scores.
        **kwargs: The arguments of :class:`ExportedModel`.
    """

    def __init__(self, head, **kwargs):
        super().__init__(**kwargs)
        self.head = MODELS.build(head)

    def forward(self, inputs, data_samples=None, mode='predict'):
        """Classify images (N, C, H, W), normalised; as mmpretrain's classifiers do."""
        (scores,) = self.run(inputs)
        return self.head._get_predictions(scores, data_samples)


@MODELS.register_module()
class ExportedDetector(ExportedModel):
    """An exported detector in mmdet's loop; see :class:`ExportedModel`."""

    def forward(self, inputs, data_samples=None, mode='predict'):
        """Detect in images (N, C, H, W), normalised; as mmdet's detectors do."""
        sizes = inputs.new_tensor([sample.img_shape[:2] for sample in data_samples])
        if None not in self.size:
            # Images smaller than the file takes are padded, as those of a batch are.
            rows, columns = self.size[0] - inputs.shape[2], self.size[1] - inputs.shape[3]
            inputs = pad(inputs, (0, max(columns, 0), 0, max(rows, 0)))
        detections = zip(*self.run(inputs, sizes), strict=True)
        for sample, (boxes, scores, labels) in zip(data_samples, detections, strict=True):
            scale = boxes.new_tensor(sample.scale_factor).repeat(2)
            found = labels >= 0
            sample.pred_instances = InstanceData(
                bboxes=boxes[found] / scale, scores=scores[found], labels=labels[found]
            )
        return data_samples
