"""Exportable networks of OpenMMLab models: tensors in, tensors out."""

from typing import Any

from torch import Tensor, nn

from mmevit.utils.errors import ConfigError


def make_exportable(model: nn.Module, part: str = 'model') -> nn.Module:
    """Wrap a model of mmpretrain, mmdet or mmsegmentation for :func:`mmevit.deploy.export`.

    ``part='backbone'`` wraps the backbone of any model.

    Raises:
        ConfigError: If models of this type cannot be exported.
    """
    if part == 'backbone':
        backbone: Any = model.get_submodule('backbone')
        names = tuple(f'stage_{index}' for index in backbone.out_indices)
        return Network(backbone, names).eval()
    if hasattr(model, 'decode_head'):
        return Segmentor(model).eval()
    if hasattr(model, 'extract_feat') and not hasattr(model, 'head'):
        # Imported here, since mmdet is optional.
        from .detectors import Detector

        return Detector(model).eval()
    return Network(model, ('logits',), mode='tensor').eval()


def count_input_channels(network: nn.Module) -> int:
    """Return the number of input channels of the first convolution."""
    return next(part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d))


class Network(nn.Module):
    """Map normalized images (N, C, H, W) to logits or feature maps, with names.

    ``arguments`` are further arguments of the model's ``forward()``.
    """

    def __init__(self, model: nn.Module, output_names: tuple[str, ...], **arguments: Any) -> None:
        super().__init__()
        self.model, self.output_names, self.arguments = model, output_names, arguments

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model."""
        return self.model(images, **self.arguments)


class Segmentor(nn.Module):
    """Map normalized images (N, C, H, W) to the labels of their pixels (N, H, W), int64.

    Raises:
        ConfigError: If the model segments images in parts.
    """

    output_names = ('segments',)

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if model.test_cfg.mode != 'whole':
            raise ConfigError(
                f'Models with test_cfg.mode={model.test_cfg.mode!r} cannot be exported. Set '
                "model.test_cfg=dict(mode='whole')."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Segment images."""
        meta = dict(img_shape=images.shape[2:])
        logits = self.model.encode_decode(images, [meta])
        if logits.shape[1] == 1:
            threshold = self.model.decode_head.threshold
            return (logits[:, 0].sigmoid() > threshold).long()
        return logits.argmax(dim=1)
