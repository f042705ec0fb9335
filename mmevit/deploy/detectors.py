"""Complete detectors of mmdet: a network for the batch, and ``predict()`` for each image."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from mmdet.models import MaskFormerHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError

from .equivalents import exportable_operators


class Detector(nn.Module):
    """Map images to boxes, and to masks and segments if the model predicts them.

    ``features`` runs what convolutions can do for a batch, ``predict`` the rest of the model for
    one image. Exporters write them as two graphs.

    Raises:
        ConfigError: If the model cannot be exported.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = Features(model)
        self.predict = PredictOne(model, self.features)
        self.output_names = name_outputs(model)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (N, C, H, W), normalized, padded at the bottom and right.
            image_sizes: (N, 2), float, height and width without padding.

        Returns:
            Boxes (N, K, 4) as x1, y1, x2, y2 in pixels, by descending score; scores (N, K); labels
            (N, K), int64; masks (N, K, h, w). Padding has score 0 and label -1. Panoptic models
            return only segments (N, H, W), int64.
        """
        features = self.features(images)
        results = [self.predict(*one) for one in zip(images, image_sizes, *features, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    @staticmethod
    def match_order(
        outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Reorder detections to the expected ones, where nearly equal scores are swapped.

        Both are boxes, scores, labels and possibly masks. ``outputs`` stays as it is if the numbers
        differ, or if it has only segments.
        """
        if len(outputs) == 1:
            return outputs
        boxes, scores, labels, *masks = outputs
        if not torch.equal((labels < 0).sum(dim=1), (expected[2] < 0).sum(dim=1)):
            return outputs
        distances = (boxes[:, None] - expected[0][:, :, None]).abs().amax(dim=3)
        distances += 1e3 * (labels[:, None] != expected[2][:, :, None])
        distances += 1e3 * (scores[:, None] - expected[1][:, :, None]).abs()
        nearest = distances.argmin(dim=2)
        rows = torch.arange(len(boxes))[:, None]
        return tuple(part[rows, nearest] for part in (boxes, scores, labels, *masks))


class Features(nn.Module):
    """Map images (N, C, H, W) to feature maps and the outputs of dense heads, as a flat tuple."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.heads = [
            name
            for name, head in model.named_children()
            # The heads of MaskFormer are transformers.
            if isinstance(head, BaseDenseHead) and not isinstance(head, MaskFormerHead)
        ]
        self.structure: Any = None  # see :func:`structure_of`; known after the first call

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone, the neck and dense heads."""
        features = self.model.extract_feat(images)
        heads = [self.model.get_submodule(name)(features) for name in self.heads]
        self.structure = structure_of((features, heads))
        return tuple(flatten((features, heads)))


class PredictOne(nn.Module):
    """Map the features of one image to its detections, with the model's own ``predict()``."""

    def __init__(self, model: Any, features: Features) -> None:
        super().__init__()
        self.model = deepcopy(model)
        for part in ('backbone', 'neck'):
            delattr(self.model, part)
        self.heads = features.heads
        # In a list: its parameters are not those of this module.
        self.batched = [features]
        for part in self.model.modules():
            if isinstance(getattr(part, 'test_cfg', None), dict):
                part.test_cfg = set_limits(part.test_cfg)

    def forward(self, image: Tensor, size: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in an image (C, H, W) whose size without padding is (2,)."""
        values = (feature[None] for feature in features)
        maps, outputs = unflatten(self.batched[0].structure, values)
        self.model.extract_feat = lambda images: maps
        for name, output in zip(self.heads, outputs, strict=True):
            self.model.get_submodule(name).forward = lambda maps, output=output: output
        shape = image.shape[1:]
        meta = dict(img_shape=(size[0], size[1]), scale_factor=(1.0, 1.0))
        meta.update(ori_shape=shape, batch_input_shape=shape, pad_shape=shape)
        with exportable_operators():
            sample = DetDataSample(metainfo=meta)
            (sample,) = self.model.predict(image[None], [sample], rescale=False)
        if 'pred_panoptic_seg' in sample:
            return (sample.pred_panoptic_seg.sem_seg[0],)
        found = sample.pred_instances
        is_found = found.scores > 0
        outputs = found.bboxes * is_found[:, None], found.scores
        masks = [found.masks * is_found[:, None, None]] if 'masks' in found else []
        return *outputs, torch.where(is_found, found.labels, -1), *masks


def name_outputs(model: Any) -> tuple[str, ...]:
    """Return what a model predicts."""
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is not None and fusion.test_cfg.get('panoptic_on', True):
        return ('segments',)
    has_masks = fusion is not None or getattr(model, 'with_mask', False)
    return ('boxes', 'scores', 'labels', 'masks')[: 4 if has_masks else 3]


def set_limits(test_cfg: Any) -> Any:
    """Put what non-maximum suppression needs to know into its settings.

    Raises:
        ConfigError: For other types than ``nms``.
    """
    test_cfg = deepcopy(test_cfg)
    if nms := test_cfg.get('nms'):
        if type_name(nms) != 'nms':
            raise ConfigError(
                f'Models with {type_name(nms)} cannot be exported. Set the type of nms in '
                "model.test_cfg to 'nms'."
            )
        # The equivalent of the function filters and limits boxes.
        nms.update(max_num=test_cfg.max_per_img, min_bbox_size=test_cfg.get('min_bbox_size', -1))
        test_cfg.min_bbox_size = -1
    return test_cfg


def flatten(structure: Any) -> list[Tensor]:
    """List the tensors of nested tuples and lists in order."""
    if isinstance(structure, Tensor):
        return [structure]
    return [tensor for part in structure for tensor in flatten(part)]


def structure_of(outputs: Any) -> Any:
    """Return nested tuples and lists with None for every tensor."""
    if isinstance(outputs, Tensor):
        return None
    return type(outputs)(map(structure_of, outputs))


def unflatten(structure: Any, tensors: Iterator[Tensor]) -> Any:
    """Put tensors into a structure."""
    if structure is None:
        return next(tensors)
    return type(structure)(unflatten(part, tensors) for part in structure)
