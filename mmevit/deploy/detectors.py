"""Complete detectors of mmdet: a network for the batch, and ``predict()`` for each image."""

import math
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmdet.models import (
    MaskFormerHead,
    RetinaHead,
    RetinaSepBNHead,
    RTMDetHead,
    RTMDetSepBNHead,
    SingleStageDetector,
    SSDHead,
    TOODHead,
)
from mmdet.models.dense_heads import CondInstMaskHead, SOLOV2Head, YOLACTProtonet
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError

from .equivalents import exportable_operators
from .equivalents.masks import mask_format
from .networks import PerImageNetwork, make_data_samples, share_of_other_pixels

# Limit for models that set none, such as YOLOX. COCO's metric counts at most 100 boxes.
MAX_BOXES = 1000
# Dense heads that run for one image: TOOD's cannot run for a batch of dynamic size, and those of
# MaskFormer are transformers.
HEADS_OF_ONE = (TOODHead, MaskFormerHead)
# Heads with nothing but scores and boxes, which limit boxes to the image.
HEADS_OF_CANDIDATES = (RTMDetHead, RTMDetSepBNHead, RetinaHead, RetinaSepBNHead, SSDHead)
# By the last output.
TASKS = dict(labels='detection', masks='instance-segmentation', segments='panoptic-segmentation')


class Detector(PerImageNetwork):
    """Map images to boxes, and to masks and segments if the model predicts them.

    ``features`` runs what convolutions can do for a batch, ``predict`` the rest of the model for
    one image. Exporters write them as two graphs.

    Raises:
        ConfigError: If the model cannot be exported.
    """

    input_names = ('images', 'image_sizes')
    # Rounding can change the order of candidates, and which one is kept.
    tolerance = 0.05
    unit = 'of the detections'

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.features = Features(model)
        self.predict: Any = PredictOne(model, self.features)
        self.output_names = name_outputs(model)
        self.task = TASKS[self.output_names[-1]]
        if self.task == 'instance-segmentation':
            self.metadata = dict(masks=mask_format(model))
        elif self.task == 'panoptic-segmentation':
            self.metadata = dict(num_things=model.panoptic_fusion_head.num_things_classes)
            self.unit = 'of the pixels'

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            images: (N, C, H, W), normalized, padded at the bottom and right.
            image_sizes: (N, 2), float, height and width without padding.

        Returns:
            Boxes (N, K, 4) as x1, y1, x2, y2 in pixels, by descending score; scores (N, K); labels
            (N, K), int64; masks (N, K, h, w). Padding has score 0 and label -1. For panoptic
            segmentation only segments (N, H, W), int64, as label + 1000 * instance.
        """
        features = self.features(images)
        results = [self.predict(*one) for one in zip(images, image_sizes, *features, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))

    def disable_nms(self) -> dict[str, Any] | None:
        """Return all candidates from now on, for runtimes without non-maximum suppression.

        Returns:
            The settings for :func:`mmevit.runtime.suppression.suppress`, None if it is not needed.

        Raises:
            ConfigError: If the model does more with the boxes that are left, such as predict masks.
        """
        model: Any = self.predict.model
        has_boxes_only = self.task == 'detection' and isinstance(model, SingleStageDetector)
        if not has_boxes_only or getattr(model.bbox_head, 'with_score_voting', False):
            raise ConfigError(
                f'The target has no non-maximum suppression, and {type(model).__name__} needs it '
                'before its last step. Use onnx or openvino, or give --part backbone.'
            )
        test_cfg = model.bbox_head.test_cfg
        if not (nms := test_cfg.get('nms')):
            return None
        nms.suppress = False
        test_cfg.max_per_img = sys.maxsize
        return list_nms_settings(nms)

    def make_candidate_network(self, images: Tensor) -> tuple['Candidates', dict[str, Any]]:
        """Return a network without top-k and non-maximum suppression, for runtimes without them.

        Args:
            images: (1, C, H, W), of the only size that the network is for.

        Returns:
            The network and the settings for
            :func:`mmevit.runtime.suppression.select_and_suppress`.

        Raises:
            ConfigError: If the head is not of RTMDet, RetinaNet or SSD.
        """
        model: Any = self.features.model
        if type(getattr(model, 'bbox_head', None)) not in HEADS_OF_CANDIDATES:
            raise ConfigError(
                'The target cannot select boxes, which mmevit.runtime does for the heads '
                f'{", ".join(head.__name__ for head in HEADS_OF_CANDIDATES)} only. Use onnx, or '
                'give --part backbone.'
            )
        head, one = model.bbox_head, self.predict.model.bbox_head
        test_cfg, nms = one.test_cfg, one.test_cfg.nms
        levels = head(model.extract_feat(images))[0]
        counts = head.prior_generator.num_base_priors
        settings = dict(
            level_sizes=[
                math.prod(level.shape[2:]) * count
                for level, count in zip(levels, counts, strict=True)
            ],
            nms_pre=test_cfg.nms_pre,
            score_thr=max(test_cfg.score_thr, nms.get('score_threshold', 0)),
            min_bbox_size=nms.min_bbox_size,
            **list_nms_settings(nms),
        )
        return Candidates(model), settings

    def predict_with_library(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the boxes, scores and labels, or the segments, of the model's own predictions."""
        # mmdet fuses segments at the original size only, which is the same.
        model: Any = self.features.model
        samples = model.predict(images, make_data_samples(images), rescale=True)
        if self.output_names == ('segments',):
            return (torch.cat([sample.pred_panoptic_seg.sem_seg for sample in samples]),)
        found = [sample.pred_instances for sample in samples]
        found = [instances[instances.scores > 0] for instances in found]
        return (
            pad_sequence([instances.bboxes for instances in found], True),
            pad_sequence([instances.scores for instances in found], True),
            pad_sequence([instances.labels for instances in found], True, -1),
        )

    def measure_difference(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """Return the share of detections or pixels that are missing, additional or different.

        Masks are compared if both have them.
        """
        if self.output_names == ('segments',):
            return share_of_other_pixels(outputs[0], expected[0])
        if any(output.isnan().any() for output in outputs):
            return math.nan
        num_same = 0
        for index in range(len(outputs[0])):
            same = find_same(*(part[index] for part in (*outputs[:3], *expected[:3])))
            if len(outputs) == len(expected) == 4:
                threshold = self.metadata['masks']['threshold']
                masks = (part[3][index] > threshold for part in (outputs, expected))
                same &= have_same_masks(*masks)
            num_same += min(int(same.any(dim=0).sum()), int(same.any(dim=1).sum()))
        num_found = max(int((outputs[2] >= 0).sum()), int((expected[2] >= 0).sum()))
        return 1 - num_same / num_found if num_found else 0.0


class Candidates(nn.Module):
    """Map an image (1, C, H, W) to all boxes (L, 4), without limits, and scores (L, classes)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model up to the selection by score."""
        head = self.model.bbox_head
        outputs = head(self.model.extract_feat(images))
        test_cfg = Config({**head.test_cfg, 'nms_pre': None, 'min_bbox_size': -1})
        meta = dict(img_shape=None)
        with exportable_operators():
            (found,) = head.predict_by_feat(
                *outputs, batch_img_metas=[meta], cfg=test_cfg, with_nms=False
            )
        return found.bboxes, found.scores


class Features(nn.Module):
    """Map images (N, C, H, W) to feature maps and the outputs of dense heads, as a flat tuple."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.heads = dict(find_heads(model))
        self.structure: Any = None  # of the outputs; known after the first call

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone, the neck and dense heads."""
        with exportable_operators():
            features = self.model.extract_feat(images)
            heads = [
                self.model.get_submodule(name)(features[levels])
                for name, levels in self.heads.items()
            ]
        tensors, self.structure = tree_flatten((features, heads))
        return tuple(tensors)


def find_heads(model: nn.Module) -> Iterator[tuple[str, slice | int]]:
    """Find the parts of heads that need nothing but feature maps, and the levels of these."""
    for name, part in model.named_children():
        if isinstance(part, HEADS_OF_ONE):
            continue
        if isinstance(part, (BaseDenseHead, SOLOV2Head)):
            yield name, slice(None)
        elif isinstance(part, CondInstMaskHead):
            yield f'{name}.mask_feature_head', slice(None)
        elif isinstance(part, YOLACTProtonet):
            yield f'{name}.protonet', 0


class PredictOne(nn.Module):
    """Map the features of one image to its detections, with the model's own ``predict()``."""

    def __init__(self, model: Any, features: Features) -> None:
        super().__init__()
        self.model = deepcopy(model)
        for part in ('backbone', 'neck'):
            self.model._modules.pop(part, None)
        self.heads = features.heads
        # In a list: its parameters are not those of this module.
        self.batched = [features]
        for part in self.model.modules():
            if isinstance(getattr(part, 'test_cfg', None), dict):
                part.test_cfg = set_limits(part.test_cfg)

    def forward(self, image: Tensor, size: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Run the model for an image (C, H, W) whose size without padding is (2,)."""
        values = [feature[None] for feature in features]
        maps, outputs = tree_unflatten(values, self.batched[0].structure)
        self.model.extract_feat = lambda images: maps
        for name, output in zip(self.heads, outputs, strict=True):
            self.model.get_submodule(name).forward = lambda maps, output=output: output
        shape = image.shape[1:]
        meta: dict[str, Any] = dict(ori_shape=shape, batch_input_shape=shape, pad_shape=shape)
        meta.update(img_shape=(size[0], size[1]), scale_factor=(1.0, 1.0))
        with exportable_operators():
            sample = DetDataSample(metainfo=meta)
            (sample,) = self.model.predict(image[None], [sample], rescale=False)
        if 'pred_panoptic_seg' in sample:
            return (sample.pred_panoptic_seg.sem_seg[0].long(),)
        found = sample.pred_instances
        is_found = found.scores > 0
        outputs = found.bboxes * is_found[:, None], found.scores
        masks = [found.masks * is_found[:, None, None]] if 'masks' in found else []
        return *outputs, torch.where(is_found, found.labels, -1), *masks


def find_same(
    boxes: Tensor, scores: Tensor, labels: Tensor, boxes2: Tensor, scores2: Tensor, labels2: Tensor
) -> Tensor:
    """Return which detections of an image (K, ...) equal which others (L, ...): (K, L), bool."""
    same = (boxes[:, None] - boxes2).abs().amax(dim=2) < 0.1  # pixels
    same &= (scores[:, None] - scores2).abs() < 1e-3
    return same & (labels[:, None] == labels2) & (labels2 >= 0)


def have_same_masks(masks: Tensor, masks2: Tensor) -> Tensor:
    """Return which masks of an image (K, h, w), bool, have an IoU of 0.9: (K, K)."""
    flat, flat2 = (part.flatten(1).float() for part in (masks, masks2))
    common = flat @ flat2.T
    return common >= 0.9 * (flat.sum(dim=1)[:, None] + flat2.sum(dim=1) - common)


def name_outputs(model: Any) -> tuple[str, ...]:
    """Return the names of what a model predicts."""
    fusion = getattr(model, 'panoptic_fusion_head', None)
    if fusion is not None and fusion.test_cfg.get('panoptic_on', True):
        return ('segments',)
    masks = ['masks'] if mask_format(model) else []
    return ('boxes', 'scores', 'labels', *masks)


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
        # The equivalent of the function filters and limits boxes. A limit of -1 is none.
        limits = test_cfg.get('max_per_img', -1), nms.get('max_num', -1)
        max_num = min((limit for limit in limits if limit > 0), default=MAX_BOXES)
        nms.update(max_num=max_num, min_bbox_size=test_cfg.get('min_bbox_size', -1))
        test_cfg.update(max_per_img=max_num, min_bbox_size=-1)
    return test_cfg


def list_nms_settings(nms: Any) -> dict[str, Any]:
    """Return the arguments of :func:`mmevit.runtime.suppression.suppress`, after set_limits()."""
    return dict(
        iou_threshold=nms.iou_threshold,
        max_num=nms.max_num,
        class_agnostic=nms.get('class_agnostic', False),
    )
