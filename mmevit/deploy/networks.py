"""Exportable networks of OpenMMLab models: tensors in, tensors out."""

from typing import Any

import torch
from torch import Tensor, nn

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError

from .boxes import select_boxes


def make_exportable(model: nn.Module, part: str = 'model') -> 'Network | AnchorDetector':
    """Wrap a classifier of mmpretrain or a detector of mmdet for :func:`mmevit.deploy.export`.

    ``part='backbone'`` wraps the backbone of any model.

    Raises:
        ConfigError: If models of this type cannot be exported.
    """
    name = type(model).__name__
    if part == 'backbone':
        backbone: Any = model.get_submodule('backbone')
        names = tuple(f'stage_{index}' for index in backbone.out_indices)
        return Network(backbone, names).eval()
    if hasattr(model, 'bbox_head'):
        return AnchorDetector(model).eval()
    if hasattr(model, 'roi_head'):
        raise refusal(name, 'since the number of boxes in its second stage varies')
    if hasattr(model, 'decode_head'):
        raise refusal(name, 'only classifiers and detectors with anchors')
    return Network(model, ('logits',), mode='tensor').eval()


def refusal(name: str, reason: str) -> ConfigError:
    """Return the error for a model that cannot be exported."""
    return ConfigError(
        f'{name} cannot be exported as a complete model, {reason}. Export its backbone.'
    )


def count_input_channels(network: nn.Module) -> int:
    """Return the number of input channels of the first convolution."""
    return next(part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))


class Network(nn.Module):
    """Map normalized images (N, C, H, W) to logits or feature maps, with names.

    ``arguments`` are further arguments of the model's ``forward()``.
    """

    def __init__(self, model: nn.Module, output_names: tuple[str, ...], **arguments: Any) -> None:
        super().__init__()
        self.model, self.output_names, self.arguments = model, output_names, arguments

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model."""
        return self.model(images, **self.arguments)


# Heads of mmdet that only return scores and deltas, which AnchorHead.predict() decodes.
HEADS = {
    'RetinaHead',
    'SyncedRetinaHead',
    'RetinaSepBNHead',
    'FreeAnchorRetinaHead',
    'PISARetinaHead',
}


class AnchorDetector(nn.Module):
    """Map images to boxes, for one-stage detectors with anchors, such as RetinaNet.

    The same as mmdet's ``AnchorHead.predict()``, but for a batch: select the best candidates of
    each level, decode their boxes, and apply non-maximum suppression per class.

    Raises:
        ConfigError: If the head is decoded differently.
    """

    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head = head = model.bbox_head
        self.test_cfg = model.test_cfg
        nms = self.test_cfg.get('nms') or {}
        if (
            type(head).__name__ not in HEADS
            or type(head.bbox_coder).__name__ != 'DeltaXYWHBBoxCoder'
            or not head.use_sigmoid_cls
            or type_name(nms) != 'nms'
            or self.test_cfg.get('min_bbox_size', -1) != 0
        ):
            raise refusal(
                f'{type(model).__name__} with {type(head).__name__}',
                "only RetinaNet's heads with DeltaXYWHBBoxCoder, sigmoid scores, nms and "
                'min_bbox_size=0',
            )

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images: (N, C, H, W), normalized, padded at the bottom and right.
            image_sizes: (N, 2), float, height and width without padding.

        Returns:
            Boxes (N, max_per_img, 4) as x1, y1, x2, y2 in pixels, by descending score; scores
            (N, max_per_img); labels (N, max_per_img), int64. Padding has score 0 and label -1.
        """
        boxes, scores, labels = self.find_candidates(images, image_sizes)
        nms = self.test_cfg.nms
        # An offset per class keeps boxes of different classes from overlapping.
        stride = 0 if nms.get('class_agnostic') else boxes.amax((1, 2))[:, None] + 1
        kept = select_boxes(
            boxes + (labels * stride)[..., None],
            scores,
            nms.iou_threshold,
            self.test_cfg.score_thr,
            self.test_cfg.max_per_img,
        )
        index, found = kept.clamp(min=0), kept >= 0
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)) * found[..., None]
        scores = scores.gather(1, index) * found
        return boxes, scores, torch.where(found, labels.gather(1, index), -1)

    @staticmethod
    def match_order(
        outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Reorder detections to the expected ones, where nearly equal scores are swapped.

        Both are boxes, scores and labels. ``outputs`` stays as it is if the numbers differ.
        """
        boxes, scores, labels = outputs
        if not torch.equal((labels < 0).sum(dim=1), (expected[2] < 0).sum(dim=1)):
            return outputs
        distances = (boxes[:, None] - expected[0][:, :, None]).abs().amax(dim=3)
        distances += 1e3 * (labels[:, None] != expected[2][:, :, None])
        distances += 1e3 * (scores[:, None] - expected[1][:, :, None]).abs()
        nearest = distances.argmin(dim=2)
        boxes = boxes.gather(1, nearest[..., None].expand(-1, -1, 4))
        return boxes, scores.gather(1, nearest), labels.gather(1, nearest)

    def find_candidates(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decoded boxes, scores and labels of the ``nms_pre`` best of each level."""
        cls_scores, bbox_preds = self.model(images, mode='tensor')
        priors = self.head.prior_generator.grid_priors(
            [scores.shape[-2:] for scores in cls_scores], torch.float32, images.device
        )
        levels = zip(cls_scores, bbox_preds, priors, strict=True)
        boxes, scores, labels = (
            torch.cat(parts, dim=1)
            for parts in zip(*(self.find_in_level(*level) for level in levels), strict=True)
        )
        limits = image_sizes.flip(1).repeat(1, 2)[:, None]
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        is_inside = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        return boxes, scores * is_inside, labels

    def find_in_level(
        self, cls_score: Tensor, bbox_pred: Tensor, priors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes (N, K, 4), scores (N, K) and labels (N, K) of one level."""
        num_classes = self.head.cls_out_channels
        # In float32: beyond 1024, float16 cannot represent half pixels.
        scores = cls_score.float().permute(0, 2, 3, 1).flatten(1).sigmoid()
        num_kept: Any = torch.sym_min(self.test_cfg.nms_pre, scores.shape[1])
        scores, index = scores.topk(num_kept)
        anchor, labels = index // num_classes, index % num_classes
        deltas = bbox_pred.float().permute(0, 2, 3, 1).reshape(bbox_pred.shape[0], -1, 4)
        deltas = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = self.head.bbox_coder.decode(priors[anchor].flatten(0, 1), deltas.flatten(0, 1))
        return boxes.view_as(deltas), scores, labels
