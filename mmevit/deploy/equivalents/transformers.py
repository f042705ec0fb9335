"""Deformable DETR, DINO and Mask2Former.

``spatial_shapes``, a tensor in mmdet, is a list of heights and widths here. Tensors cannot be the
sizes of others.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models import DeformableDETR, MaskFormerHead
from mmdet.models.layers import DeformableDetrTransformerEncoder, MSDeformAttnPixelDecoder
from mmdet.structures import DetDataSample
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
        maps.append(output(values + interpolate(maps[-1], values.shape[2:], mode='bilinear')))
    return self.mask_feature(maps[-1]), maps[: self.num_outs]


def predict_queries(
    self: MaskFormerHead, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]
) -> tuple[Tensor, Tensor]:
    """Return logits of classes and, at stride 4, of masks, see ``MaskFormerHead.predict()``."""
    logits, masks = self(x, batch_data_samples)
    return logits[-1], masks[-1]


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
]
