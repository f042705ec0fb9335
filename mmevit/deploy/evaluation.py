"""Exported files as models, so that OpenMMLab's test loop evaluates them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn.functional import pad

from mmevit.runtime.sessions import check_format
from mmevit.utils.configs import find_preprocessor
from mmevit.utils.errors import ConfigError
from mmevit.utils.masks import resize_masks, resize_segments

from .exporting import load_exported

# The registered model that runs files of each task, and the library whose configs it evaluates.
MODELS_BY_TASK = {
    'classification': ('ExportedClassifier', 'mmpretrain'),
    'detection': ('ExportedDetector', 'mmdet'),
    'instance-segmentation': ('ExportedDetector', 'mmdet'),
    'panoptic-segmentation': ('ExportedDetector', 'mmdet'),
    'semantic-segmentation': ('ExportedSegmentor', 'mmseg'),
}


def use_exported_model(cfg: Config, path: str | Path, trust: bool = False) -> None:
    """Replace the model of a config, for evaluation; its data preprocessor is kept.

    Raises:
        ConfigError: If the file was exported for another task than that of the config, or by an
            incompatible version of mmevit.
    """
    metadata = load_exported(path, trust=trust).metadata
    check_format(path, metadata)
    task = metadata['task']
    name, library = MODELS_BY_TASK.get(task, (None, None))
    if name is None or library != cfg.get('default_scope'):
        raise ConfigError(
            f'{path} was exported for {task}, but the config is for '
            f'{cfg.get("default_scope")}. Pass a complete model written by tools/export.py.'
        )
    _, preprocessor = find_preprocessor(cfg)
    preprocessor.setdefault('type', 'ClsDataPreprocessor')  # mmpretrain's default
    head = cfg.model.get('head') or dict(type='ClsHead')
    others = dict(head=head) if library == 'mmpretrain' else {}
    cfg.model = dict(type=name, file=path, trust=trust, data_preprocessor=preprocessor, **others)
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
        self.pad_value = self.session.metadata['input']['pad_value']

    def pad(self, images: Tensor) -> Tensor:
        """Pad images that are smaller than a fixed size, like those of a batch."""
        if None in self.size:
            return images
        rows, columns = self.size[0] - images.shape[2], self.size[1] - images.shape[3]
        return pad(images, (0, max(columns, 0), 0, max(rows, 0)), value=self.pad_value)

    def run(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        """Run the file on a batch (N, C, H, W), in parts if it was exported for a smaller one."""
        height, width = images.shape[2:]
        if self.size not in ([None, None], [height, width]):
            raise ConfigError(
                f'The images have {height}x{width} pixels, but the file was exported for '
                f'{self.size[0]}x{self.size[1]}. Export it with --dynamic batch size if the target '
                'supports it, or with a test pipeline that resizes to this size.'
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
        """Detect or segment objects in normalized images (N, C, H, W)."""
        sizes = inputs.new_tensor([sample.img_shape[:2] for sample in data_samples])
        images = self.pad(inputs)
        for sample, *outputs in zip(data_samples, *self.run(images, sizes), strict=True):
            if self.session.metadata['task'] == 'panoptic-segmentation':
                sample.pred_panoptic_seg = PixelData(sem_seg=restore(outputs[0], sample)[None])
            else:
                boxes, scores, labels, *masks = outputs
                found = labels >= 0
                scale = boxes.new_tensor(sample.scale_factor).repeat(2)
                instances: Any = InstanceData(
                    bboxes=boxes[found] / scale, scores=scores[found], labels=labels[found]
                )
                if masks:
                    instances.masks = self.restore_masks(
                        masks[0][found], instances.bboxes, sample, images.shape[2:]
                    )
                sample.pred_instances = instances
        return data_samples

    def restore_masks(
        self, masks: Tensor, boxes: Tensor, sample: Any, size: Sequence[int]
    ) -> Tensor:
        """Return the masks of an image (K, h, w) in the size of the original one."""
        values, corners = (tensor.float().cpu().numpy() for tensor in (masks, boxes))
        original = sample.ori_shape[:2]
        # Pad of the pipeline enlarges img_shape. scale_factor is of width and height.
        factors = sample.scale_factor[1::-1]
        content = [round(side * factor) for side, factor in zip(original, factors, strict=True)]
        sizes = original, content, size
        resized = resize_masks(values, corners, self.session.metadata['masks'], sizes)
        return torch.from_numpy(resized).to(masks.device)


@MODELS.register_module()
class ExportedSegmentor(ExportedModel):
    """An exported segmentor of mmsegmentation, see :class:`ExportedModel`."""

    def forward(self, inputs: Tensor, data_samples: list[Any], mode: str = 'predict') -> list[Any]:
        """Segment normalized images (N, C, H, W)."""
        (segments,) = self.run(self.pad(inputs))
        for sample, classes in zip(data_samples, segments, strict=True):
            sample.pred_sem_seg = PixelData(data=restore(classes, sample)[None])
        return data_samples


def restore(segments: Tensor, sample: Any) -> Tensor:
    """Crop a map (H, W) to the image without padding, and resize it to the original image."""
    sizes = sample.ori_shape[:2], sample.img_shape[:2]
    resized = resize_segments(segments.cpu().numpy(), *sizes)
    return torch.from_numpy(resized).to(segments.device)
