"""Grad-CAM: which pixels a classifier bases its prediction on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from mmevit.utils.errors import ConfigError

if TYPE_CHECKING:
    from mmpretrain.models import ImageClassifier


def grad_cam(
    classifier: ImageClassifier,
    inputs: Tensor,
    stages: Sequence[int],
    classes: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Compute Grad-CAM maps at the end of some stages.

    From `Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
    <https://arxiv.org/abs/1610.02391>`_, Equations 1 and 2.

    Args:
        classifier: A classifier with an ``EfficientViT`` backbone, in evaluation mode.
        inputs: Preprocessed images, (N, C, H, W).
        stages: Indices in ascending order: 0, 1, 2 for strides 16, 32, 64.
        classes: Class to explain for each image, (N,). Defaults to the predicted class.

    Returns:
        The maps of each stage, (N, H, W), each scaled to a maximum of 1 unless it is 0 everywhere,
        and the logits, (N, num_classes).

    Raises:
        ConfigError: If ``grad-cam`` is not installed.

    Example:
        >>> from mmpretrain.models import ImageClassifier
        >>> classifier = ImageClassifier(
        ...     backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(type='EfficientViTClsHead', num_classes=10, in_channels=192),
        ... ).eval()
        >>> maps, logits = grad_cam(classifier, torch.rand(2, 3, 96, 64), stages=[1])
        >>> maps[0].shape, logits.shape
        (torch.Size([2, 96, 64]), torch.Size([2, 10]))
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'Grad-CAM requires {error.name}, which is not installed. '
            'Run pip install "mmevit[analysis]".'
        ) from error

    # A copy, since GradCAM adds hooks and resets the gradients of the weights.
    copy: Any = deepcopy(classifier).requires_grad_(False)
    layers = [copy.backbone.stages[stage][-1] for stage in stages]
    cam = GradCAM(copy, layers)
    targets: Any = classes if classes is None else [*map(ClassifierOutputTarget, classes.tolist())]
    with torch.enable_grad():
        cam(inputs.detach().requires_grad_(), targets)
    recorded = cam.activations_and_grads
    found = zip(layers, recorded.activations, recorded.gradients, strict=True)
    maps = [
        cam.get_cam_image(inputs, layer, targets, features.numpy(), gradient.numpy())
        for layer, features, gradient in found
    ]
    return [normalize_map(cam_image, inputs) for cam_image in maps], cam.outputs.detach()


def normalize_map(cam_image: ndarray, inputs: Tensor) -> Tensor:
    """Clip a map (N, h, w) at 0, resize it to the inputs and scale each image to a maximum of 1."""
    maps = torch.from_numpy(cam_image).to(inputs.device).relu()
    maps = interpolate(maps[:, None], inputs.shape[2:], mode='bilinear')[:, 0]
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, maps)
