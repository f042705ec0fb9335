"""Grad-CAM: which pixels a classifier bases its prediction on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from mmevit.utils.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
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
    classifier = deepcopy(classifier).requires_grad_(False)
    layers = [cast(Any, classifier.backbone).stages[stage][-1] for stage in stages]
    cam = GradCAM(classifier, layers)
    targets = cast(
        Any, None if classes is None else [*map(ClassifierOutputTarget, classes.tolist())]
    )
    with torch.enable_grad():
        cam(inputs.detach().requires_grad_(), targets)
    recorded = cam.activations_and_grads
    maps = [
        cam.get_cam_image(inputs, layer, targets, features.numpy(), gradient.numpy())
        for layer, features, gradient in zip(
            layers, recorded.activations, recorded.gradients, strict=True
        )
    ]
    return [normalize_map(cam_image, inputs) for cam_image in maps], cam.outputs.detach()


def normalize_map(cam_image: ndarray, inputs: Tensor) -> Tensor:
    """Clip a map (N, h, w) at 0, resize it to the inputs and scale each image to a maximum of 1."""
    maps = torch.from_numpy(cam_image).to(inputs.device).relu()
    maps = interpolate(maps[:, None], inputs.shape[2:], mode='bilinear')[:, 0]
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, maps)


def plot_grad_cams(images: Tensor, maps: list[Tensor], titles: list[str]) -> Figure:
    """Draw each image in a row: plain, then with the map of each stage.

    Args:
        images: RGB from 0 to 1, (N, 3, H, W).
        maps: For each stage (N, H, W), from 0 to 1.
        titles: One for each image.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.figure import Figure

    num_columns = 1 + len(maps)
    figure = Figure(figsize=(2.2 * num_columns, 2.4 * len(images)), layout='constrained')
    rows = figure.subplots(len(images), num_columns, squeeze=False)
    for index, row in enumerate(rows):
        image = images[index].permute(1, 2, 0).clamp(0, 1).cpu()
        for column, axes in enumerate(row):
            axes.imshow(image)
            axes.set_axis_off()
            if column > 0:
                axes.imshow(maps[column - 1][index].cpu(), cmap='jet', alpha=0.5, vmin=0, vmax=1)
                axes.set_title(f'stage {column}', fontsize=9)
        row[0].set_title(titles[index], fontsize=9, parse_math=False)
    return figure
