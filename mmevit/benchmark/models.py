"""Networks by name, their published accuracy and size, calibration and folding."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._pytree import tree_flatten

from mmevit.deploy import try_to_fold
from mmevit.deploy.networks import count_input_channels, make_data_samples
from mmevit.models import EfficientViT
from mmevit.utils.configs import build_model, read_config
from mmevit.utils.errors import ConfigError, one_line


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and its published figures."""

    label: str  # in tables and plots
    name: str  # for :func:`build`
    size: int = 224  # of the images that the accuracy is published for
    top1: float | None = None  # accuracy on ImageNet-1k, in percent
    params: float | None = None  # in millions
    macs: float | None = None  # multiply-accumulates per image, in millions
    # Images/s on one thread of a Xeon E5-2690 v4 with batch size 16, from the EfficientViT paper.
    cpu_speed: float | None = None
    box_ap: float | None = None  # on COCO val2017, in percent
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # override its config


T2T_LAYERS = dict(num_heads=4, feedforward_channels=512)
T2T_7 = dict(
    backbone=dict(embed_dims=256, num_layers=7, layer_cfgs=T2T_LAYERS), head=dict(in_channels=256)
)
SHUFFLE_2X = dict(backbone=dict(widen_factor=2.0), head=dict(in_channels=2048))
# The networks of Tables 2 and 3 that mmpretrain or timm have, with the accuracy, parameters and
# multiply-accumulates of their own papers, and the speeds of the EfficientViT paper where they are
# certain. MobileViT is measured at 256 pixels, like in the paper. Neither library has the performer
# of T2T-ViT-7; full attention replaces it, with more operations.
PAPER_MODELS = [
    Model('MobileNetV3-Small', 'timm::mobilenetv3_small_100', 224, 67.4, 2.5, 57),
    Model('MobileViT-XXS', 'timm::mobilevit_xxs', 256, 69.0, 1.3, 410),
    Model('ShuffleNetV2 1x', 'shufflenet-v2-1x_16xb64_in1k', 224, 69.4, 2.3, 146),
    Model('MobileViTv2-0.5', 'timm::mobilevitv2_050', 256, 70.2, 1.4, 466),
    Model('PVTv2-B0', 'timm::pvt_v2_b0', 224, 70.5, 3.4, 600),
    Model('MobileOne-S0', 'timm::mobileone_s0', 224, 71.4, 2.1, 275),
    Model(
        'T2T-ViT-7, no performer', 't2t-vit-t-14_8xb64_in1k', 224, 71.7, 4.3, 1100, options=T2T_7
    ),
    Model('MobileNetV2 1.0', 'timm::mobilenetv2_100', 224, 72.0, 3.4, 300),
    Model('DeiT-T', 'timm::deit_tiny_patch16_224', 224, 72.2, 5.7, 1300),
    Model('GhostNet', 'timm::ghostnet_100', 224, 73.9, 5.2, 141),
    Model('MobileViT-XS', 'timm::mobilevit_xs', 256, 74.8, 2.3, 986),
    Model(
        'ShuffleNetV2 2x', 'shufflenet-v2-1x_16xb64_in1k', 224, 74.9, 7.4, 591, options=SHUFFLE_2X
    ),
    Model('MobileNetV3-Large', 'timm::mobilenetv3_large_100', 224, 75.2, 5.4, 219, 39.1),
    Model('MobileViTv2-0.75', 'timm::mobilevitv2_075', 256, 75.6, 2.9, 1030),
    Model('MobileOne-S1', 'timm::mobileone_s1', 224, 75.9, 4.8, 825),
    Model('LeViT-128S', 'timm::levit_128s', 224, 76.6, 7.8, 305),
    Model('EfficientNet-B0', 'timm::efficientnet_b0', 224, 77.1, 5.3, 390),
    Model('PoolFormer-S12', 'timm::poolformer_s12', 224, 77.2, 12, 1800),
    Model('EfficientFormer-L1', 'timm::efficientformer_l1', 224, 79.2, 12.3, 1300),
    Model('Swin-T', 'timm::swin_tiny_patch4_window7_224', 224, 81.3, 29, 4500),
    Model('EfficientViT-M0', 'efficientvit-m0', 224, 63.2, 2.3, 79),
    Model('EfficientViT-M1', 'efficientvit-m1', 224, 68.4, 3.0, 167),
    Model('EfficientViT-M2', 'efficientvit-m2', 224, 70.8, 4.2, 201),
    Model('EfficientViT-M3', 'efficientvit-m3', 224, 73.4, 6.9, 263),
    Model('EfficientViT-M4', 'efficientvit-m4', 224, 74.3, 8.8, 299),
    Model('EfficientViT-M5', 'efficientvit-m5', 224, 77.1, 12.4, 522, 56.8),
]
# Networks of about M4's accuracy or speed that are newer, with the accuracy that timm publishes (of
# CPUBone, none) at this size, and ours.
PEERS = [
    Model('EfficientFormerV2-S0', 'timm::efficientformerv2_s0', 224, 76.1),
    Model('FastViT-T8', 'timm::fastvit_t8', 256, 76.2),
    Model('RepViT-M0.9', 'timm::repvit_m0_9', 224, 78.7),
    Model('StarNet-S1', 'timm::starnet_s1', 224, 73.5),
    Model('MobileNetV4-Conv-Small', 'timm::mobilenetv4_conv_small', 224, 73.8),
    Model('MobileNetV4-Conv-Medium', 'timm::mobilenetv4_conv_medium', 224, 79.1),
    Model('HGNetV2-B0', 'timm::hgnetv2_b0', 224, 77.4),
    Model('SHViT-S1', 'timm::shvit_s1', 224, 72.8),
    Model('SHViT-S2', 'timm::shvit_s2', 224, 75.2),
    Model('SHViT-S3', 'timm::shvit_s3', 224, 77.4),
    Model('SHViT-S4', 'timm::shvit_s4', 256, 79.4),
    Model('CPUBone-nano', 'timm::cpubone_nano'),
    Model('CPUBone-B0', 'timm::cpubone_b0_bfrobust'),
    *(model for model in PAPER_MODELS if model.label.startswith(('LeViT', 'EfficientViT'))),
]
SSDLITE = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
# Detectors for real time, with the average precision that mmdet publishes (of YOLOX-nano, its
# authors), and RetinaNet, whose average precisions are for larger images.
DETECTORS = [
    Model('RTMDet EfficientViT-M0', 'mmevit::efficientvit/rtmdet_evit_m0.py', 640),
    Model('RTMDet EfficientViT-M1', 'mmevit::efficientvit/rtmdet_evit_m1.py', 640),
    Model('RTMDet EfficientViT-M2', 'mmevit::efficientvit/rtmdet_evit_m2.py', 640),
    Model('RTMDet EfficientViT-M3', 'mmevit::efficientvit/rtmdet_evit_m3.py', 640),
    Model('RTMDet EfficientViT-M4', 'mmevit::efficientvit/rtmdet_evit_m4.py', 640),
    Model('RTMDet EfficientViT-M5', 'mmevit::efficientvit/rtmdet_evit_m5.py', 640),
    Model('RetinaNet EfficientViT-M4', 'mmevit::efficientvit/retinanet_evit_m4.py', 640),
    Model('RTMDet-tiny', 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', size=640, box_ap=41.1),
    Model('RTMDet-s', 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py', size=640, box_ap=44.6),
    Model('YOLOX-nano', 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py', size=416, box_ap=25.8),
    Model('YOLOX-tiny', 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', size=416, box_ap=32.0),
    Model('YOLOX-s', 'mmdet::yolox/yolox_s_8xb8-300e_coco.py', size=640, box_ap=40.5),
    Model('SSDLite MobileNetV2', SSDLITE, size=320, box_ap=21.3),
    Model('RetinaNet ResNet-50', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 640),
]


def by_name(models: Sequence[Model]) -> dict[str, Model]:
    """Index networks by label, and by name unless they also need options."""
    return {model.label: model for model in models} | {
        model.name: model for model in models if not model.options
    }


KNOWN_MODELS = by_name([*PEERS, *PAPER_MODELS, *DETECTORS])


def find_model(name: str) -> Model:
    """Return the network of a name, with its published numbers if they are known.

    Args:
        name: A name for :func:`build`, or a label of ``PAPER_MODELS``, ``PEERS`` or ``DETECTORS``.

    Example:
        >>> find_model('timm::mobilenetv2_100').top1
        72.0
    """
    plain = name.removeprefix('mmpretrain::')
    for known in (name, plain, plain.removesuffix('_8xb256_in1k')):
        if known in KNOWN_MODELS:
            return dataclasses.replace(KNOWN_MODELS[known], label=name)
    return Model(label=name, name=name)


def find_models(names: Sequence[str]) -> list[Model]:
    """Return the networks of some names, at least one: see :func:`find_model`."""
    if not names:
        raise ConfigError('No model given. Name at least one model, such as efficientvit-m4.')
    return [find_model(name) for name in names]


def select_models(models: Sequence[Model], names: Sequence[str]) -> list[Model]:
    """Select networks of a table, such as ``PAPER_MODELS``, in its order.

    Args:
        models: The table.
        names: Names or labels; all networks if empty.

    Raises:
        ConfigError: If one is not in the table.

    Example:
        >>> chosen = select_models(PAPER_MODELS, ['efficientvit-m1', 'Swin-T'])
        >>> [model.label for model in chosen]
        ['Swin-T', 'EfficientViT-M1']
    """
    known = by_name(models)
    if unknown := sorted(set(names) - known.keys()):
        labels = ', '.join(model.label for model in models)
        raise ConfigError(f'{", ".join(unknown)} is not in the table. Choose from {labels}.')
    chosen = [known[name] for name in names]
    return [model for model in models if not names or model in chosen]


def build(name: str, options: Mapping[str, Any] = {}) -> nn.Module:
    """Build a network by name, with random weights.

    Args:
        name: ``'efficientvit-m4'`` or another model of mmevit or mmpretrain, with or without
            ``mmpretrain::`` before it; ``'timm::NAME'``; ``'backbone::m4'``; or a config, such as
            ``'configs/retinanet_evit_m4.py'`` or
            ``'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'``.
        options: Overridden settings of ``model`` in its config.

    Raises:
        ConfigError: If the name is unknown, or its library is not installed.

    Example:
        >>> type(build('backbone::m0')).__name__
        'EfficientViT'
    """
    library, _, rest = name.rpartition('::')
    try:
        if name.endswith('.py'):
            settings = {f'model.{key}': value for key, value in options.items()}
            return build_model(read_config(name, settings, needs=['model']))
        if library == 'backbone':
            return EfficientViT(rest)
        if library == 'timm':
            import timm

            return timm.create_model(rest, pretrained=False, **options)
        if library in ('', 'mmpretrain'):
            return build_from_mmpretrain(rest, options)
    except ConfigError:
        raise
    # Each library raises errors of its own for invalid names and settings.
    except Exception as error:
        raise ConfigError(f'The model {name} cannot be built: {one_line(error)}') from error
    raise ConfigError(
        f'The library of model {name} is unknown. Use a name of mmevit or mmpretrain, timm::NAME, '
        'backbone::ARCH or a config.'
    )


def build_from_mmpretrain(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build a classifier of mmpretrain or mmevit."""
    import mmpretrain

    if re.fullmatch('efficientvit-m[0-5]', name):
        name += '_8xb256_in1k'
    if name not in mmpretrain.list_models():
        raise ConfigError(
            f'Unknown model {name}. mmpretrain.list_models() lists those of mmpretrain and mmevit; '
            'models of timm are named timm::NAME.'
        )
    model: Any = mmpretrain.get_model(name, pretrained=False, **options)
    return model


class FlatOutputs(nn.Module):
    """A network that returns its outputs as a flat tuple of tensors.

    Models of OpenMMLab run with ``mode='tensor'``, without decoding.

    Example:
        >>> network = FlatOutputs(EfficientViT('m0')).eval()
        >>> [feature.shape[1] for feature in network(torch.rand(1, 3, 64, 64))]
        [64, 128, 192]
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, C, H, W) to a tuple of tensors."""
        arguments = {}
        if isinstance(self.model, BaseModel):
            arguments['mode'] = 'tensor'
        if getattr(self.model, 'with_rpn', False):
            arguments['data_samples'] = make_data_samples(images)
        return tuple(tree_flatten(self.model(images, **arguments))[0])


class Predictions(FlatOutputs):
    """A detector or segmentor that returns what its own ``predict()`` does, as a flat tuple.

    In training, it returns the outputs of its heads.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, C, H, W) to boxes and so on of each image."""
        if self.training:
            return super().forward(images)
        model: Any = self.model
        if hasattr(model, 'decode_head'):
            samples = model.predict(images)
            return tuple(sample.pred_sem_seg.data for sample in samples)
        samples = model.predict(images, make_data_samples(images), rescale=False)
        found = [
            sample.get('pred_instances', sample.get('pred_panoptic_seg')) for sample in samples
        ]
        return tuple(tensor for results in found for tensor in results.values())


def calibrate(network: nn.Module, size: tuple[int, int]) -> None:
    """Give batch norms random weights, and the statistics of random images of a size, in place.

    Otherwise the activations of a deep network with random weights grow or vanish, and processors
    are slow on denormal numbers. Classifiers of dense models lose their low prior probability, so
    that the suppression of boxes has as many candidates as possible.
    """
    for module in network.modules():
        bias = getattr(module, 'bias', None)
        if isinstance(bias, nn.Parameter) and (bias < -2).all():
            nn.init.zeros_(bias)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0  # the statistics of the next batch only
        norm.train()
    network(torch.randn(2, count_input_channels(network), *size))
    for norm in norms:
        norm.eval()
        if norm.running_var is not None:
            # After attention and pooling, noise has hardly any variance. Normalising it to 1 would
            # amplify rounding errors.
            norm.running_var.clamp_(min=0.1)


def fold_all(network: FlatOutputs, images: Tensor) -> FlatOutputs:
    """Return a copy for inference with everything folded that can be.

    That is what :func:`mmevit.deploy.try_to_fold` or timm's function fold, and then every batch
    norm that follows a convolution or linear layer. One image is run to find these pairs.
    """
    folded = copy.deepcopy(network)
    if type(folded.model).__module__.startswith('timm.'):
        from timm.utils.model import reparameterize_model

        reparameterize_model(folded, inplace=True)
        folded = folded.to(images.device)  # timm creates the folded layers on the CPU
    else:
        folded = try_to_fold(folded)
    parents = {
        child: (parent, name)
        for parent in folded.modules()
        for name, child in parent.named_children()
    }
    for layer, norm in find_pairs(folded, images):
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        parent, name = parents[norm]
        # timm's batch norms include the activation.
        rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity()
        setattr(parent, name, rest.eval())
    return folded


def find_pairs(network: nn.Module, images: Tensor) -> list[tuple[Any, Any]]:
    """Find the batch norms whose input is the output of a convolution or linear layer.

    Shared modules are left out. That the output has no other use is not checked.

    Returns:
        Pairs of a layer and a batch norm.
    """
    sources, pairs = {}, []

    def record_output(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        # The reference to the output keeps its id from being reused. Its version, for which PyTorch
        # has no public name, tells whether an activation changes it in place.
        sources[id(output)] = (layer, output, output._version)

    def record_input(norm: nn.Module, args: tuple[Any, ...]) -> None:
        layer, _, version = sources.get(id(args[0]), (None, None, None))
        if layer is not None and args[0]._version == version:
            pairs.append((layer, norm))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                hooks.enter_context(module.register_forward_hook(record_output))
            elif isinstance(module, _BatchNorm) and module.affine and module.track_running_stats:
                hooks.enter_context(module.register_forward_pre_hook(record_input))
        network(images)
    modules = [module for pair in pairs for module in pair]
    return [pair for pair in pairs if all(modules.count(module) == 1 for module in pair)]
