"""Deformable DETR, DINO and Mask2Former.

``spatial_shapes``, a tensor in mmdet, is a list of heights and widths here. Tensors cannot be the
sizes of others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models import DeformableDETR, MaskFormerFusionHead, MaskFormerHead
from mmdet.models.layers import DeformableDetrTransformerEncoder, MSDeformAttnPixelDecoder
from mmdet.structures import INSTANCE_OFFSET, DetDataSample
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn.functional import interpolate


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Return the pixels of maps (1, C, H, W) as tokens (1, L, C)."""
    return torch.cat([values.flatten(2) for values in maps], dim=2).transpose(1, 2)


def prepare_tokens(
    self: DeformableDETR, mlvl_feats: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs of encoder and decoder, see ``DeformableDETR.pre_transformer()``."""
    (sample,) = batch_data_samples
    shapes = [values.shape[2:] for values in mlvl_feats]
    padding = [find_padding(shape, sample) for shape in shapes]
    positions = [
        self.positional_encoding(mask) + embedding[:, None, None]
        for mask, embedding in zip(padding, self.level_embed, strict=True)
    ]
    mask = torch.cat([mask.flatten(1) for mask in padding], dim=1)
    common = dict(
        spatial_shapes=shapes,
        level_start_index=None,
        valid_ratios=torch.stack([self.get_valid_ratio(mask) for mask in padding], dim=1),
    )
    tokens = dict(feat=flatten_levels(mlvl_feats), feat_pos=flatten_levels(positions))
    return dict(tokens, feat_mask=mask, **common), dict(memory_mask=mask, **common)


def find_padding(shape: Sequence[int], sample: Any) -> Tensor:
    """Return whether pixels of a map are padding, (1, H, W)."""
    rows, columns = (
        nearest_pixels(count, of_image) >= limit
        for count, of_image, limit in zip(
            shape, sample.batch_input_shape, sample.img_shape, strict=True
        )
    )
    return (rows[:, None] | columns)[None]


def nearest_pixels(count: int, of_image: int) -> Tensor:
    """Return the rows of an image that ``interpolate()`` takes for those of a map."""
    # In single precision, as PyTorch.
    scale = torch.full([], of_image, dtype=torch.float32) / count
    return (torch.arange(count, dtype=torch.float32) * scale).floor()


def encode_points(
    spatial_shapes: Sequence[Sequence[int]], valid_ratios: Tensor, device: Any
) -> Tensor:
    """Return a point for each token and level, see ``get_encoder_reference_points()``."""
    points = []
    for level, shape in enumerate(spatial_shapes):
        y, x = (
            (torch.arange(side, device=device) + 0.5) / (valid_ratios[0, level, 1 - axis] * side)
            for axis, side in enumerate(shape)
        )
        points.append(torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=2).flatten(0, 1))
    return torch.cat(points)[None, :, None] * valid_ratios[:, None]


def attend(
    self: Any,
    query: Tensor,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    *,
    reference_points: Tensor,
    spatial_shapes: Any,
    **kwargs: Any,
) -> Tensor:
    """Attend to sampled points, see ``MultiScaleDeformableAttention.forward()``."""
    values = self.value_proj(query if value is None else value)
    identity = query if identity is None else identity
    query = query if query_pos is None else query + query_pos
    if key_padding_mask is not None:
        values = values.masked_fill(key_padding_mask[:, :, None], 0)
    values = values.unflatten(2, (self.num_heads, -1))
    points = (self.num_heads, self.num_levels, self.num_points)
    offsets = self.sampling_offsets(query).unflatten(2, (*points, 2))
    weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(dim=3)
    references = reference_points[:, :, None, :, None]
    if reference_points.shape[3] == 2:
        sizes = [torch.stack([torch.full([], side) for side in shape]) for shape in spatial_shapes]
        offsets = offsets / torch.stack(sizes).flip(1)[:, None]
    else:
        offsets = offsets / self.num_points * references[..., 2:] * 0.5
    output = multi_scale_deformable_attn_pytorch(
        values, spatial_shapes, references[..., :2] + offsets, weights.unflatten(3, points[1:])
    )
    return self.output_proj(output) + identity


def decode_pixels(self: Any, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return features of masks and levels, see ``MSDeformAttnPixelDecoder.forward()``."""
    encoded = feats[::-1][: self.num_encoder_levels]
    shapes = [values.shape[2:] for values in encoded]
    ratios = feats[0].new_ones(1, len(shapes), 2)
    tokens = self.encoder(
        query=flatten_levels([conv(x) for conv, x in zip(self.input_convs, encoded, strict=True)]),
        query_pos=flatten_levels(
            [
                self.postional_encoding(None, values) + embedding[:, None, None]
                for values, embedding in zip(encoded, self.level_encoding.weight, strict=True)
            ]
        ),
        key_padding_mask=None,
        spatial_shapes=shapes,
        level_start_index=None,
        valid_ratios=ratios,
        reference_points=encode_points(shapes, ratios, ratios.device),
    )
    levels = tokens.split([height * width for height, width in shapes], dim=1)
    maps = [
        values.transpose(1, 2).unflatten(2, tuple(shape))
        for values, shape in zip(levels, shapes, strict=True)
    ]
    finer = feats[: -self.num_encoder_levels][::-1]
    for values, lateral, output in zip(finer, self.lateral_convs, self.output_convs, strict=True):
        values = lateral(values)
        maps.append(output(values + resize(maps[-1], values.shape[2:])))
    return self.mask_feature(maps[-1]), maps[: self.num_outs]


def resize(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """Resize maps bilinearly."""
    return interpolate(maps, tuple(shape), mode='bilinear', align_corners=False)


def predict_queries(
    self: MaskFormerHead, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]
) -> tuple[Tensor, Tensor]:
    """Return logits of classes and, at stride 4, of masks, see ``MaskFormerHead.predict()``."""
    logits, masks = self(x, batch_data_samples)
    return logits[-1], masks[-1]


def fuse(
    self: Any,
    mask_cls_results: Tensor,
    mask_pred_results: Tensor,
    batch_data_samples: Sequence[Any],
    rescale: bool = False,
) -> list[dict[str, Any]]:
    """Return segments, or else instances, see ``MaskFormerFusionHead.predict()``."""
    (sample,) = batch_data_samples
    shape = sample.batch_input_shape
    masks = resize(mask_pred_results, shape)[0]
    rows, columns = (
        torch.arange(side, device=masks.device) < limit
        for side, limit in zip(shape, sample.img_shape, strict=True)
    )
    inside = rows[:, None] & columns
    if self.test_cfg.get('panoptic_on', True):
        return [dict(pan_results=segment(self, mask_cls_results[0], masks, inside))]
    found: Any = find_instances(self, mask_cls_results[0], masks, inside)
    found.masks = mask_pred_results[0][found.pop('queries')]
    return [dict(ins_results=found)]


def segment(self: Any, logits: Tensor, masks: Tensor, inside: Tensor) -> PixelData:
    """Return segments, see ``MaskFormerFusionHead.panoptic_postprocess()``.

    Args:
        self: The head.
        logits: Of each query, (Q, classes + 1).
        masks: Logits, (Q, H, W).
        inside: Whether pixels belong to the image, (H, W).
    """
    cfg = self.test_cfg
    scores, labels = logits.softmax(dim=1).max(dim=1)
    masks = masks.sigmoid()
    kept = (labels != self.num_classes) & (scores > cfg.get('object_mask_thr', 0.8))
    best = torch.where(kept[:, None, None], scores[:, None, None] * masks, -1).argmax(dim=0)
    queries = torch.arange(len(labels), device=labels.device)
    area = ((best == queries[:, None, None]) & inside).sum(dim=(1, 2))
    own_area = ((masks >= 0.5) & inside).sum(dim=(1, 2))
    kept &= (area > 0) & (own_area > 0) & (area / own_area >= cfg.get('iou_thr', 0.8))
    is_thing = labels < self.num_things_classes
    number = (kept & is_thing).cumsum(dim=0)
    values = torch.where(is_thing, labels + number * INSTANCE_OFFSET, labels)
    segments = torch.where(kept, values, self.num_classes)[best]
    if cfg.get('filter_low_score', False):
        is_solid = masks.gather(0, best[None])[0] >= 0.5
        segments = torch.where(is_solid, segments, self.num_classes)
    return PixelData(sem_seg=segments[None])


def find_instances(self: Any, logits: Tensor, masks: Tensor, inside: Tensor) -> InstanceData:
    """Return instances by descending score, and their queries instead of masks.

    See ``MaskFormerFusionHead.instance_postprocess()``, and :func:`segment` for the arguments.
    """
    is_mask = (masks > 0) & inside
    quality = torch.where(is_mask, masks.sigmoid(), 0).sum(dim=(1, 2))
    quality = quality / (is_mask.sum(dim=(1, 2)) + 1e-6)
    scores = logits.softmax(dim=1)[:, :-1].flatten()
    scores, index = scores.topk(self.test_cfg.get('max_per_image', 100))
    queries, labels = index // self.num_classes, index % self.num_classes
    scores = scores * quality[queries] * (labels < self.num_things_classes)
    scores, order = scores.sort(descending=True)
    queries, labels = queries[order], labels[order]
    boxes = enclose(is_mask)[queries]
    return InstanceData(bboxes=boxes, scores=scores, labels=labels, queries=queries)


def enclose(masks: Tensor) -> Tensor:
    """Return the boxes around masks (N, H, W), see ``mask2bbox()``."""
    sides = []
    for axis in (2, 1):
        is_covered = masks.any(dim=3 - axis)
        index = torch.arange(masks.shape[axis], device=masks.device)
        sides.append(
            (
                torch.where(is_covered, index, masks.shape[axis]).amin(dim=1),
                torch.where(is_covered, index + 1, 0).amax(dim=1),
            )
        )
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], dim=1).float()


METHODS = [
    (DeformableDETR, 'pre_transformer', prepare_tokens),
    (
        DeformableDetrTransformerEncoder,
        'get_encoder_reference_points',
        staticmethod(encode_points),
    ),
    (MultiScaleDeformableAttention, 'forward', attend),
    (MSDeformAttnPixelDecoder, 'forward', decode_pixels),
    (MaskFormerHead, 'predict', predict_queries),
    (MaskFormerFusionHead, 'predict', fuse),
]
