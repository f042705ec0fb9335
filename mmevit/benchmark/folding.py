"""Folding networks of any library for inference."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from mmevit.deploy import try_to_fold

from .models import FlatOutputs


def fold_all(network: FlatOutputs, images: Tensor) -> FlatOutputs:
    """Return a copy for inference with everything folded that can be.

    That is what :func:`mmevit.deploy.try_to_fold` or timm's function fold, and then every batch
    norm that follows a convolution or linear layer.

    Args:
        network: The network.
        images: One image, (1, C, H, W), which is run to find the pairs of layers.
    """
    folded = copy.deepcopy(network)
    if type(folded.model).__module__.startswith('timm.'):
        from timm.utils.model import reparameterize_model

        reparameterize_model(folded, inplace=True)
    else:
        folded = try_to_fold(folded)
    fold_batch_norms(folded, images)
    return folded


def fold_batch_norms(network: nn.Module, images: Tensor) -> None:
    """Fold each batch norm into the convolution or linear layer before it, in place.

    Args:
        network: The network, in evaluation mode.
        images: One image, (1, C, H, W).

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        >>> fold_batch_norms(network, torch.rand(1, 3, 8, 8))
        >>> [type(layer).__name__ for layer in network]
        ['Conv2d', 'Identity', 'ReLU']
    """
    parents = {
        child: (parent, name)
        for parent in network.modules()
        for name, child in parent.named_children()
    }
    for layer, norm in find_pairs(network, images):
        fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        parent, name = parents[norm]
        # timm's batch norms include the activation.
        rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity()
        setattr(parent, name, rest.eval())


def find_pairs(network: nn.Module, images: Tensor) -> list[tuple[Any, Any]]:
    """Find the batch norms whose input is the output of a convolution or linear layer.

    Shared modules are left out. That the output has no other use is not checked.

    Args:
        network: The network.
        images: One image, (1, C, H, W).

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

    handles = []
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(record_output))
        elif isinstance(module, _BatchNorm) and module.affine and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(record_input))
    network(images)
    for handle in handles:
        handle.remove()
    modules = [module for pair in pairs for module in pair]
    return [pair for pair in pairs if all(modules.count(module) == 1 for module in pair)]
