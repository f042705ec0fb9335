"""What of an OpenMMLab model goes into an exported file: tensors in, tensors out."""

import torch
from torch import nn

from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError

from .boxes import select_boxes


def network_of(model, part='model'):
    """Make the network that is exported of a model.

    Args:
        model (nn.Module): A classifier of mmpretrain or a detector of mmdet.
        part (str): ``'model'``, the whole, or ``'backbone'``, for its feature maps.

    Returns:
        nn.Module: The network, in evaluation mode.

    Raises:
        ConfigError: If it is of a kind that cannot be exported.
    """
    if part == 'backbone':
        return Backbone(model.backbone).eval()
    if hasattr(model, 'bbox_head'):
        return AnchorDetector(model).eval()
    if hasattr(model, 'roi_head'):
        raise ConfigError(
            f'{type(model).__name__} cannot be exported whole, since its second stage works on as '
            'many boxes as the first one finds: export its backbone.'
        )
    if hasattr(model, 'decode_head'):
        raise ConfigError(
            f'{type(model).__name__} cannot be exported whole, but classifiers and detectors with '
            'anchors can: export its backbone.'
        )
    return Classifier(model).eval()


def count_input_channels(network: nn.Module) -> int:
    """Number of channels of the images that a network takes: those of its first convolution."""
    return next(part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))


class Classifier(nn.Module):
    """Images to the scores of the classes before softmax.

    Args:
        model (ImageClassifier): A classifier of mmpretrain.
    """

    output_names = ('logits',)

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """Map images (N, C, H, W), normalised, to scores (N, num_classes)."""
        return self.model(images, mode='tensor')


class Backbone(nn.Module):
    """Images to the feature maps of a backbone.

    Args:
        backbone (nn.Module): The backbone, with ``out_indices``.
    """

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.output_names = tuple(f'stage_{index}' for index in backbone.out_indices)

    def forward(self, images):
        """Map images (N, C, H, W), normalised, to a tuple of maps (N, C_i, H_i, W_i)."""
        return self.backbone(images)


# Those of mmdet that give scores and deltas alone, which AnchorHead.predict() decodes.
HEADS = (
    'RetinaHead',
    'SyncedRetinaHead',
    'RetinaSepBNHead',
    'FreeAnchorRetinaHead',
    'PISARetinaHead',
)


class AnchorDetector(nn.Module):
    """Images to boxes, for one-stage detectors with anchors, such as RetinaNet.

    Does for a whole batch what mmdet's ``AnchorHead.predict()`` does for each image: the best
    candidates of each level, their boxes, non-maximum suppression class by class.

    Args:
        model (SingleStageDetector): A detector of mmdet.

    Raises:
        ConfigError: If its head works otherwise.
    """

    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.head = model.bbox_head
        self.test_cfg = model.test_cfg
        self.check()

    def check(self):
        """Refuse heads that decode otherwise."""
        head, nms = self.head, self.test_cfg.get('nms') or {}
        if (
            type(head).__name__ not in HEADS
            or type(head.bbox_coder).__name__ != 'DeltaXYWHBBoxCoder'
            or not head.use_sigmoid_cls
            or type_name(nms) != 'nms'
            or self.test_cfg.get('min_bbox_size', -1) != 0
        ):
            raise ConfigError(
                f'{type(self.model).__name__} with {type(head).__name__} cannot be exported whole: '
                "RetinaNet's heads with DeltaXYWHBBoxCoder, sigmoid scores, plain nms and "
                'min_bbox_size=0 can; export its backbone.'
            )

    def forward(self, images, image_sizes):
        """Detect.

        Args:
            images (Tensor): (N, C, H, W), normalised, and padded at the bottom and the right.
            image_sizes (Tensor): (N, 2), float, height and width inside the padding.

        Returns:
            tuple[Tensor, Tensor, Tensor]: The best boxes first, (N, max_per_img, 4) as x1, y1, x2,
            y2 in pixels of the images, their scores and labels (N, max_per_img), int64. Where
            there are fewer, the rest has score 0 and label -1.
        """
        boxes, scores, labels = self.find_candidates(images, image_sizes)
        nms = self.test_cfg.nms
        # Classes are moved apart, so that boxes of different ones do not overlap.
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
    def in_order(outputs, expected):
        """Put detections in the order of others, since those of nearly one score change places.

        Args:
            outputs (tuple[Tensor]): Boxes, scores and labels.
            expected (tuple[Tensor]): Others.

        Returns:
            tuple[Tensor, Tensor, Tensor]: For each of ``expected`` the nearest one of ``outputs``;
            ``outputs`` as they are if there are more or fewer.
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

    def find_candidates(self, images, image_sizes):
        """Find the best ``nms_pre`` anchors and classes of each level, and decode the boxes."""
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

    def find_in_level(self, cls_score, bbox_pred, priors):
        """Do so in one level: boxes (N, K, 4), scores (N, K) and labels (N, K)."""
        num_classes = self.head.cls_out_channels
        # In float32 from here on: float16 has no half pixels beyond 1024.
        scores = cls_score.float().permute(0, 2, 3, 1).flatten(1).sigmoid()
        num_kept = torch.sym_min(self.test_cfg.nms_pre, scores.shape[1])
        scores, index = scores.topk(num_kept)
        anchor, labels = index // num_classes, index % num_classes
        deltas = bbox_pred.float().permute(0, 2, 3, 1).reshape(bbox_pred.shape[0], -1, 4)
        deltas = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = self.head.bbox_coder.decode(priors[anchor].flatten(0, 1), deltas.flatten(0, 1))
        return boxes.view_as(deltas), scores, labels
