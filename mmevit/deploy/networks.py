"""Exportable networks of OpenMMLab models: tensors in, tensors out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError


def make_exportable(model: nn.Module, part: str = 'model') -> 'Exportable':
    """Wrap a model of mmpretrain, mmdet or mmsegmentation for :func:`mmevit.deploy.export`.

    ``part='backbone'`` wraps the backbone of any model.

    Raises:
        ConfigError: If models of this type cannot be exported.
    """
    if part == 'backbone':
        if not hasattr(model, 'backbone'):
            raise ConfigError(f'{type(model).__name__} has no backbone. Give --part model.')
        backbone: Any = model.get_submodule('backbone')
        names = tuple(f'stage_{index}' for index in backbone.out_indices)
        return Network(backbone, 'features', names).eval()
    # Imported here, since mmdet and mmsegmentation are optional.
    if hasattr(model, 'decode_head'):
        from .segmentors import Segmentor

        return Segmentor(model).eval()
    if is_dense_model(model):
        from .detectors import Detector

        return Detector(model).eval()
    from mmpretrain.models import MultiLabelClsHead

    if isinstance(getattr(model, 'head', None), MultiLabelClsHead):
        raise ConfigError(
            f'{type(model.head).__name__} cannot be exported, since its scores are not those of a '
            'softmax. Give --part backbone.'
        )
    return Network(model, 'classification', ('logits',), mode='tensor').eval()


def is_dense_model(model: nn.Module) -> bool:
    """Return whether a model is a detector of mmdet or a segmentor of mmsegmentation."""
    # Classifiers of mmpretrain have this property, even without a head.
    return hasattr(model, 'extract_feat') and not hasattr(model, 'with_head')


def count_input_channels(network: nn.Module) -> int:
    """Return the number of image channels that the first convolution is for."""
    for part in network.modules():
        if type(part).__name__ == 'Focus':  # of YOLOX: the pixels of 2x2 blocks are channels
            return count_input_channels(next(part.children())) // 4
        if isinstance(part, nn.Conv2d):
            return part.in_channels
    raise ConfigError(
        'The network has no convolution, so the number of image channels is unknown. Export a '
        'model with a convolutional stem.'
    )


class Exportable(nn.Module):
    """A network with named tensors as inputs and outputs."""

    task: str  # in the metadata of files
    input_names: tuple[str, ...] = ('images',)
    output_names: tuple[str, ...]
    metadata: dict[str, Any] = {}  # about the outputs
    # Accepted result of measure_difference() for a file in float32, and its unit.
    tolerance = 1e-4
    unit = 'of the largest output'

    @property
    def is_dense(self) -> bool:
        """Whether the network predicts boxes, masks or segments."""
        return self.task not in ('classification', 'features')

    def make_inputs(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the inputs for images (N, C, H, W), by default without padding."""
        if sizes is None:
            sizes = images.new_tensor([images.shape[2:]] * len(images))
        return (images, sizes)[: len(self.input_names)]

    def predict_with_library(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the library predicts for images without padding, except masks."""
        raise NotImplementedError

    def measure_difference(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """Measure how much outputs differ from expected ones, NaN if they contain any."""
        return largest_difference(outputs, expected)


def make_data_samples(images: Tensor) -> list[Any]:
    """Make mmdet's data samples of images without padding."""
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    return [DetDataSample(metainfo=dict(meta, scale_factor=(1.0, 1.0))) for _ in images]


class PerImageNetwork(Exportable):
    """A network of two parts, which exporters write as two graphs."""

    features: nn.Module  # maps a batch of images to tensors (N, ...)
    predict: nn.Module  # maps an image, its size and these tensors, of one image, to outputs

    def disable_nms(self) -> dict[str, Any] | None:
        """Return all candidates from now on, see :meth:`Detector.disable_nms`."""
        raise NotImplementedError

    def make_candidate_network(self, images: Tensor) -> tuple[nn.Module, dict[str, Any]]:
        """Return a network without any selection, see :meth:`Detector.make_candidate_network`."""
        raise NotImplementedError


class Network(Exportable):
    """Map normalized images (N, C, H, W) to logits or feature maps.

    ``arguments`` are further arguments of the model's ``forward()``.
    """

    def __init__(
        self, model: nn.Module, task: str, output_names: tuple[str, ...], **arguments: Any
    ) -> None:
        super().__init__()
        self.model, self.task, self.output_names = model, task, output_names
        self.arguments = arguments

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model."""
        return self.model(images, **self.arguments)


def largest_difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest value of the same output.

    The result is NaN if there is any NaN.

    Example:
        >>> largest_difference([torch.tensor([1.0, 4.0])], [torch.tensor([2.0, 4.0])])
        0.25
    """
    differences = [
        (output.float() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
        for output, wanted in zip(outputs, expected, strict=True)
    ]
    # Python's max() can drop NaN.
    return float(torch.stack(differences).max())


def share_of_other_pixels(segments: Tensor, expected: Tensor) -> float:
    """Return the share of pixels with another label than expected."""
    return float((segments != expected).float().mean())
