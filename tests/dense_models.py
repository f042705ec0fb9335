"""Complete dense models with random weights, their own predictions, and comparing them."""

import itertools

import torch
from making_models import build_model
from mmdet.models import Mask2FormerHead
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from plug_in_table import NECKS, write_config
from test_plug_in import read_m0
from torch.nn.functional import interpolate

from mmevit.deploy import try_to_fold

# Sizes without padding of the images of a batch, (160, 224) by default.
SIZES = ((150, 200), (160, 197))


def make_model(name, folder):
    """Build the folded model of a config of docs/plug_in.md, or of this repository."""
    torch.manual_seed(0)
    if name in NECKS:
        cfg = read_m0(write_config(folder / 'user.py', name, NECKS[name]))
        cfg.default_scope = name.partition('::')[0]
    else:
        cfg = Config.fromfile(f'configs/{name}.py')
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


def predict(model, images, sizes):
    """Return the library's own predictions, in the coordinates of the images."""
    shape = tuple(images.shape[2:])
    samples = []
    for size in sizes:
        meta = dict(img_shape=size, ori_shape=size, batch_input_shape=shape, pad_shape=shape)
        samples.append(DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0))))
    with torch.no_grad():
        return model.predict(images, samples, rescale=False)


def check_boxes(outputs, samples, min_count=10):
    """Compare boxes, scores and labels; those of nearly the same score may be swapped.

    Return for each sample the row of each of its detections in the outputs.
    """
    rows_of_samples = []
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
        distances = torch.stack([a - b for a, b in itertools.product(*rows)]).abs().amax(dim=1)
        nearest, row = distances.view(count, count).min(dim=0)
        assert nearest.max() < 1e-2
        rows_of_samples.append(row)
    return rows_of_samples


def check_masks(outputs, samples, shape):
    """Compare detections whose masks are logits at a stride."""
    for masks, rows, sample in zip(outputs[3], check_boxes(outputs, samples), samples, strict=True):
        wanted = sample.pred_instances.masks
        height, width = wanted.shape[1:]
        masks = interpolate(masks[None, rows], shape, mode='bilinear')[0, :, :height, :width] > 0
        overlap = (masks & wanted).sum(dim=(1, 2)) / (masks | wanted).sum(dim=(1, 2))
        assert overlap.min() > 0.995


def check_segments(outputs, samples, min_count=3):
    """Compare panoptic segments."""
    for segments, sample in zip(*outputs, samples, strict=True):
        (wanted,) = sample.pred_panoptic_seg.sem_seg
        assert len(wanted.unique()) >= min_count
        height, width = wanted.shape
        assert (segments[:height, :width] == wanted).float().mean() > 0.999
