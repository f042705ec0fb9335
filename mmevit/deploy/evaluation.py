"""Exported files as models, so that OpenMMLab's test loop evaluates them."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import pad

from mmevit.utils.errors import ConfigError

from .exporting import load_exported

# The task of complete models of each library.
TASKS = dict(mmpretrain='classification', mmdet='detection')


def evaluate_exported(cfg: Config, path: str | Path, trust: bool = False) -> None:
    """Replace the model of a config, for evaluation; its data preprocessor is kept.

    Raises:
        ConfigError: If the file holds something else than its task, such as a backbone.
    """
    task = load_exported(path, trust=trust).metadata.get('task')
    expected = TASKS.get(cfg.get('default_scope'))
    if task not in TASKS.values() or task != expected:
        raise ConfigError(
            f'{path} was exported for {task or "an unknown task"}, but the config is for '
            f'{expected or cfg.get("default_scope")}. '
            'Pass a complete classifier or detector written by tools/export.py.'
        )
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    preprocessor.setdefault('type', 'ClsDataPreprocessor')  # mmpretrain's default
    model = dict(file=path, trust=trust, data_preprocessor=preprocessor)
    if task == 'classification':
        cfg.model = dict(type='ExportedClassifier', head=cfg.model.head, **model)
    else:
        cfg.model = dict(type='ExportedDetector', **model)
    # Custom hooks, such as for averaged weights, expect a PyTorch model.
    cfg.custom_hooks = []


class ExportedModel(BaseModel):
    """A model that runs a file, see :func:`mmevit.deploy.load_exported`.

    The data preprocessor normalizes and stacks images.
    """

    def __init__(
        self, file: str | Path, data_preprocessor: dict[str, Any], trust: bool = False
    ) -> None:
        super().__init__(data_preprocessor)
        self.session = load_exported(file, trust=trust)
        self.batch_size, _, *self.size = self.session.metadata['input']['shape']

    def run(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        """Run the file on a batch (N, C, H, W), in parts if it was exported for a smaller one."""
        height, width = images.shape[2:]
        if self.size not in ([None, None], [height, width]):
            raise ConfigError(
                f'The images have {height}x{width} pixels, but the file was exported for '
                f'{self.size[0]}x{self.size[1]}. Export it with --dynamic batch size.'
            )
        num_images = self.batch_size or len(images)
        # The last part is filled up with the first images.
        index = torch.arange(len(images) + -len(images) % num_images) % len(images)
        parts = (tensor.cpu()[index].split(num_images) for tensor in (images, *others))
        outputs = zip(*(self.session(*part) for part in zip(*parts, strict=True)), strict=True)
        return [torch.cat(parts)[: len(images)].to(images.device) for parts in outputs]


@MODELS.register_module()
class ExportedClassifier(ExportedModel):
    """An exported classifier of mmpretrain, with a head that makes predictions of logits."""

    def __init__(self, head: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head = MODELS.build(head)

    def forward(
        self, inputs: Tensor, data_samples: list[Any] | None = None, mode: str = 'predict'
    ) -> list[Any]:
        """Classify normalized images (N, C, H, W)."""
        (logits,) = self.run(inputs)
        # The public predict() would first apply the layers of the head, which are in the file.
        return self.head._get_predictions(logits, data_samples)


@MODELS.register_module()
class ExportedDetector(ExportedModel):
    """An exported detector of mmdet, see :class:`ExportedModel`."""

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str = 'predict') -> list[Any]:
        """Detect objects in normalized images (N, C, H, W)."""
        sizes = inputs.new_tensor([sample.img_shape[:2] for sample in data_samples])
        if None not in self.size:
            # Smaller images are padded, like those of a batch.
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
