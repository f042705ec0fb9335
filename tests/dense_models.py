"""Complete dense models with random weights, their own predictions, and comparing them."""

from functools import partial

import torch
import torch.nn.functional as F
from making_models import build_model
from mmdet.models import Mask2FormerHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from plug_in_table import NECKS, write_config
from test_plug_in import read_m0

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
    return try_to_fold(model)


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
    torch.nn.init.normal_(head.cls_embed.weight, std=0.3)
    for layer in head.mask_embed[::2]:
        torch.nn.init.normal_(layer.weight, std=0.05)


# Layers by name, and the standard deviation of the outputs that spread_outputs() gives them. The
# mean is 0, but for logits of masks a standard deviation, since larger masks are more robust.
SPREADS = dict(rpn_cls=2, rpn_reg=0.3, fc_cls=2, fc_reg=1, conv_logits=3)


def spread_outputs(model, images, **spreads):
    """Make the outputs of heads differ, for images and regions and not only for channels.

    Args:
        model: A model, which is changed.
        images: Example images (N, C, H, W).
        **spreads: Other standard deviations than those of ``SPREADS``, by the name of the layer.
    """

    def spread(layer, inputs, output, name):
        axes = [0, *range(2, output.ndim)] if output.ndim != 3 else [0, 1]
        layer.weight /= (scale := output.std() / {**SPREADS, **spreads}[name])
        layer.bias.copy_((layer.bias - output.mean(dim=axes)) / scale)
        if name == 'conv_logits':
            layer.bias += output.std() / scale
        handles[layer].remove()
        return layer(*inputs)

    handles = {}
    for name, layer in model.named_modules():
        if (last := name.rpartition('.')[2]) in SPREADS:
            handles[layer] = layer.register_forward_hook(partial(spread, name=last))
    predict(model, images, [images.shape[2:]] * len(images))


def predict(model, images, sizes, rescale=False):
    """Return the library's own predictions, in the coordinates of the images."""
    shape = tuple(images.shape[2:])
    samples = []
    for size in sizes:
        meta = dict(img_shape=size, ori_shape=size, batch_input_shape=shape, pad_shape=shape)
        samples.append(DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0))))
    with torch.no_grad():
        samples = model.predict(images, samples, rescale=rescale)
    for sample in samples:
        if 'pred_instances' in sample:  # Sparse R-CNN does not sort them.
            found = sample.pred_instances
            sample.pred_instances = found[found.scores.argsort(descending=True, stable=True)]
    return samples


def check_boxes(outputs, samples, min_count=10):
    """Compare boxes, scores and labels; those of nearly the same score may be swapped.

    Returns the rows of the expected boxes, for each image.
    """
    orders = []
    for boxes, scores, labels, sample in zip(*outputs[:3], samples, strict=True):
        wanted = sample.pred_instances
        # PAA returns boxes by class.
        wanted = wanted[wanted.scores.argsort(descending=True, stable=True)]
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
        assert count == 0 or distances.amin(dim=0).max() < 1e-2
        orders.append(distances.argmin(dim=0) if count else [])
    return orders


def check_instances(outputs, samples):
    """Compare boxes, and masks in the boxes if there are any, pasted by mmdet."""
    orders = check_boxes(outputs, samples)
    if len(outputs) < 4:
        return
    for order, boxes, masks, sample in zip(orders, *outputs[::3], samples, strict=True):
        wanted = sample.pred_instances.masks
        pasted = torch.zeros_like(wanted)
        for row, mask in zip(order, pasted, strict=True):
            values, area = _do_paste_mask(masks[row][None, None], boxes[row][None], *mask.shape)
            mask[area] = values[0] >= 0.5
        common, union = (pasted & wanted).sum(dim=(1, 2)), (pasted | wanted).sum(dim=(1, 2))
        assert (union > 0).float().mean() > 0.9
        assert (common >= 0.995 * union).all()


def check_segments(outputs, samples, min_count=6):
    """Compare panoptic segments inside the images."""
    for segments, sample in zip(outputs[0], samples, strict=True):
        wanted = sample.pred_panoptic_seg.sem_seg[0]
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
