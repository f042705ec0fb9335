"""Complete dense models with random weights, their own predictions, and comparing them."""

import re
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from making_models import build_model
from mmdet.models import HeuristicFusionHead, Mask2FormerHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from plug_in_table import NECKS, write_config
from test_plug_in import read_m0
from torch.nn.modules.batchnorm import _BatchNorm

from mmevit.deploy import try_to_fold

# Sizes without padding of the images of a batch, (160, 224) by default.
SIZES = ((150, 200), (160, 197))


def make_model(name, folder, **options):
    """Build the folded model of a config of docs/plug_in.md, or of this repository.

    ``options`` are settings of the config, with ``__`` for the dots of their names.
    """
    torch.manual_seed(0)
    if name in NECKS:
        cfg = read_m0(write_config(folder / 'user.py', name, NECKS[name]))
        cfg.default_scope = name.partition('::')[0]
    else:
        cfg = Config.fromfile(f'configs/{name}.py')
    cfg.merge_from_dict({option.replace('__', '.'): value for option, value in options.items()})
    model = revert_sync_batchnorm(build_model(cfg))
    make_confident(model)
    # mmcv's deformable convolutions need it.
    return try_to_fold(model).to(memory_format=torch.contiguous_format)


def make_confident(model):
    """Remove the low prior probability of classifiers, so that there are many detections."""
    for module in model.modules():
        bias = getattr(module, 'bias', None)
        if isinstance(bias, torch.nn.Parameter) and bias.numel() and (bias < -2).all():
            torch.nn.init.zeros_(bias)
            torch.nn.init.normal_(module.weight, std=0.1)
        # Queries of untrained transformers all predict the same box and attend to the same points.
        elif isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.05)
        elif isinstance(module, Mask2FormerHead):
            diversify_queries(module)


def diversify_queries(head):
    """Make queries differ in class and mask."""
    for layer in head.transformer_decoder.layers:
        for attention in (layer.self_attn, layer.cross_attn):
            attention.attn.out_proj.weight.data *= 0.1
    torch.nn.init.normal_(head.cls_embed.weight, std=0.3 if head.num_stuff_classes else 0.25)
    for layer in head.mask_embed[::2]:
        torch.nn.init.normal_(layer.weight, std=0.05)


@torch.no_grad()
def fit_norms(model, images):
    """Set the statistics of batch norms to those of images (N, C, H, W)."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images, mode='tensor')
    for norm in norms:
        norm.eval()
        # To spread channels that hardly vary would amplify rounding.
        norm.running_var.clamp_(min=0.01)


@dataclass
class Spread:
    """Random weights of which layers give outputs that differ."""

    layers: str  # regular expression for the last parts of their names
    std: float  # of the output
    mean: float = 0.0
    centered: bool = True  # by channel
    by_channel: bool = False


@torch.no_grad()
def spread_outputs(model, images, spreads):
    """Scale the outputs of heads until boxes overlap and scores differ.

    Args:
        model: A model, which is changed.
        images: Example images (N, C, H, W).
        spreads: How to scale which layers.
    """

    def scale(layer, inputs, output, spread):
        values = output.movedim(1 if output.ndim == 4 else -1, 0).flatten(1) - layer.bias[:, None]
        means, std = values.mean(dim=1), values.std()
        if spread.by_channel:
            # To spread channels that hardly vary would amplify rounding.
            std = torch.maximum(values.std(dim=1), means.abs() / 1e3)
        factors = (spread.std / std).expand(len(means))
        layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.bias.copy_(spread.mean - (means * factors if spread.centered else 0))
        hooks.pop(layer).remove()  # Other levels share it.
        return layer.forward(*inputs)

    hooks = {}
    for spread in spreads:
        pattern = re.compile(rf'(^|\.)({spread.layers})(\.\d+|\.conv)*$')
        layers = [
            layer
            for name, layer in model.named_modules()
            if pattern.search(name) and isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))
        ]
        assert layers, spread
        for layer in layers:
            hooks[layer] = layer.register_forward_hook(partial(scale, spread=spread))
    predict(model, images, [images.shape[2:]] * len(images))
    assert not hooks


def predict(model, images, sizes):
    """Return the library's own predictions, in the coordinates of the images.

    Detections are sorted, and those of score 0 removed.
    """
    if hasattr(model, 'decode_head'):
        with torch.no_grad():
            return model.predict(images)
    shape = tuple(images.shape[2:])
    samples = []
    for size in sizes:
        meta = dict(img_shape=size, ori_shape=size, batch_input_shape=shape, pad_shape=shape)
        samples.append(DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0))))
    # HeuristicFusionHead fuses segments at the original size only.
    fusion = getattr(model, 'panoptic_fusion_head', None)
    with torch.no_grad():
        samples = model.predict(images, samples, rescale=isinstance(fusion, HeuristicFusionHead))
    for sample in samples:
        if 'pred_instances' in sample:
            found = sample.pred_instances
            found = found[found.scores.argsort(descending=True, stable=True)]
            sample.pred_instances = found[found.scores > 0]
    return samples


def check(outputs, samples, metadata, shape):
    """Compare the outputs of a network or file with the library's own predictions.

    Args:
        outputs: By images, as tensors.
        samples: Of :func:`predict`.
        metadata: About the outputs.
        shape: Height and width of the images with padding.
    """
    if len(outputs) == 1:
        check_segments(outputs[0], samples)
        return
    orders = check_boxes(outputs, samples)
    if len(outputs) == 4 and metadata['masks']['kind'] == 'box':
        check_box_masks(outputs, samples, orders)
    elif len(outputs) == 4:
        check_image_masks(outputs, samples, metadata['masks']['threshold'], shape)


def check_boxes(outputs, samples, min_count=10):
    """Compare boxes, scores and labels; those of nearly the same score may be swapped.

    Returns the rows of the expected boxes, for each image.
    """
    orders = []
    for boxes, scores, labels, sample in zip(*outputs[:3], samples, strict=True):
        wanted = sample.pred_instances
        count = len(wanted)
        assert count >= min_count
        assert torch.allclose(scores[:count], wanted.scores, atol=1e-4)
        assert (labels[count:] == -1).all() and (scores[count:] == 0).all()
        rows = (
            torch.cat([boxes, 1e3 * labels[:, None], 1e2 * scores[:, None]], dim=1)
            for boxes, labels, scores in (
                (boxes[:count], labels[:count], scores[:count]),
                (wanted.bboxes, wanted.labels, wanted.scores),
            )
        )
        distances = torch.cdist(*rows, p=torch.inf)
        # At the limit of their number, any of the boxes with the same score can be missing.
        is_tied = (wanted.scores == wanted.scores[-1:]) & (count == len(scores))
        assert count == 0 or (distances.amin(dim=0)[~is_tied] < 1e-2).all()
        orders.append(distances.argmin(dim=0) if count else [])
    return orders


def check_box_masks(outputs, samples, orders):
    """Compare masks in boxes, pasted by mmdet, with those of the rows of the expected boxes."""
    for order, boxes, masks, sample in zip(orders, *outputs[::3], samples, strict=True):
        wanted = sample.pred_instances.masks
        pasted = torch.zeros_like(wanted)
        for row, mask in zip(order, pasted, strict=True):
            values, area = _do_paste_mask(masks[row][None, None], boxes[row][None], *mask.shape)
            mask[area] = values[0] >= 0.5
        common, union = (pasted & wanted).sum(dim=(1, 2)), (pasted | wanted).sum(dim=(1, 2))
        assert (union > 0).float().mean() > 0.9
        assert (common >= 0.995 * union).all()


def check_segments(outputs, samples, min_count=3):
    """Compare segments inside the images."""
    for segments, sample in zip(outputs, samples, strict=True):
        kind = 'pred_panoptic_seg' if 'pred_panoptic_seg' in sample else 'pred_sem_seg'
        wanted = sample.get(kind)
        wanted = wanted.sem_seg[0] if 'sem_seg' in wanted else wanted.data[0]
        height, width = wanted.shape
        assert wanted.unique().numel() >= min_count
        assert (segments[:height, :width] == wanted).float().mean() > 0.999


def check_image_masks(outputs, samples, threshold, shape):
    """Compare masks of images, those of the nearest box, score and label.

    Args:
        outputs: Boxes, scores, labels and masks.
        samples: The library's own predictions.
        threshold: Values above belong to the object.
        shape: Height and width of the images with padding.
    """
    for boxes, scores, labels, masks, sample in zip(*outputs, samples, strict=True):
        wanted = sample.pred_instances
        height, width = sample.img_shape
        masks = F.interpolate(masks[None], shape, mode='bilinear', align_corners=False)[0]
        masks = masks[:, :height, :width] > threshold
        expected = wanted.masks[:, :height, :width]
        found, rows = (
            torch.cat([boxes, 1e3 * labels[:, None], 1e2 * scores[:, None]], dim=1)
            for boxes, labels, scores in (
                (boxes, labels, scores),
                (wanted.bboxes, wanted.labels, wanted.scores),
            )
        )
        masks = masks[torch.cdist(rows, found, p=torch.inf).argmin(dim=1)]
        common = (masks & expected).sum(dim=(1, 2))
        union = (masks | expected).sum(dim=(1, 2))
        # Most masks are neither empty nor everywhere.
        assert ((union > 0) & (union < height * width)).float().mean() > 0.5
        assert (common / union)[union > 0].min() > 0.995
