"""Where in an image a classifier finds its class."""

import torch
from torch.nn.functional import interpolate


def grad_cam(classifier, inputs, stages, classes=None):
    """Compute Grad-CAM maps at the end of each of some stages.

    From `Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization
    <https://arxiv.org/abs/1610.02391>`_, Equations 1 and 2: the channels of a map, weighted by the
    mean gradient of the class's score, summed, and cut off at 0.

    Args:
        classifier (BaseClassifier): A classifier of mmpretrain with an ``EfficientViT`` backbone,
            in evaluation mode.
        inputs (Tensor): Images as the data preprocessor gives them, (N, C, H, W).
        stages (Sequence[int]): Indices of the stages in order: 0, 1, 2 for strides 16, 32, 64.
        classes (Tensor, optional): Class to look for in each image, (N,). Defaults to the one that
            has the highest score.

    Returns:
        tuple[list[Tensor], Tensor]: The maps of each stage, (N, H, W), each scaled to a maximum of
        1 unless it is 0 everywhere, and the scores, (N, num_classes), before softmax.

    Example:
        >>> from mmpretrain.models import ImageClassifier
        >>> classifier = ImageClassifier(
        ...     backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(type='EfficientViTClsHead', num_classes=10, in_channels=192),
        ... ).eval()
        >>> maps, scores = grad_cam(classifier, torch.rand(2, 3, 96, 64), stages=[1])
        >>> maps[0].shape, scores.shape
        (torch.Size([2, 96, 64]), torch.Size([2, 10]))
    """
    features = []
    handles = [
        classifier.backbone.stages[stage][-1].register_forward_hook(
            lambda module, args, output: features.append(output)
        )
        for stage in stages
    ]
    try:
        with torch.enable_grad():
            # So that there is a gradient even where all weights are frozen.
            scores = classifier(inputs.detach().requires_grad_(), mode='tensor')
            if classes is None:
                classes = scores.argmax(1)
            gradients = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), features)
    finally:
        for handle in handles:
            handle.remove()
    size = inputs.shape[2:]
    maps = [weigh_channels(*pair, size) for pair in zip(features, gradients, strict=True)]
    return maps, scores.detach()


@torch.no_grad()
def weigh_channels(features, gradient, size):
    """Sum the channels of a map by the mean of their gradients (Equations 1 and 2).

    Args:
        features (Tensor): The map, (N, C, h, w).
        gradient (Tensor): The gradient of the class's score, (N, C, h, w).
        size (tuple[int, int]): Height and width of the images.

    Returns:
        Tensor: (N, height, width), each image scaled to a maximum of 1 unless it is 0 everywhere.
    """
    weights = gradient.mean((2, 3), keepdim=True)
    maps = (weights * features).sum(1, keepdim=True).relu()
    maps = interpolate(maps, size, mode='bilinear', align_corners=False)[:, 0]
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, maps)


def plot_grad_cams(images, maps, titles):
    """Draw images, and over each of them its maps.

    Args:
        images (Tensor): RGB from 0 to 1, (N, 3, H, W).
        maps (list[Tensor]): For each stage (N, H, W) from 0 to 1.
        titles (list[str]): A title for each image.

    Returns:
        matplotlib.figure.Figure: A row for each image: plain, then with the map of each stage.
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
