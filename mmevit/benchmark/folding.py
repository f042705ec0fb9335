"""Folding networks of any library for inference."""

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from mmevit.deploy import try_to_fold


def fold_all(network, images):
    """Fold all that can be folded, of whatever library: a copy for inference.

    First what the network itself knows to fold, by :func:`mmevit.deploy.try_to_fold` or timm's
    function, then every batch norm that follows a convolution or linear layer.

    Args:
        network (Flat): The network.
        images (Tensor): One image, (1, C, H, W), to find out what follows what.

    Returns:
        Flat: The folded copy.
    """
    folded = copy.deepcopy(network)
    if type(folded.model).__module__.startswith('timm.'):
        from timm.utils.model import reparameterize_model

        reparameterize_model(folded, inplace=True)
    else:
        folded = try_to_fold(folded)
    fold_batch_norms(folded, images)
    return folded


def fold_batch_norms(network, images):
    """Fold each batch norm into the convolution or linear layer whose output it takes.

    Args:
        network (nn.Module): The network, which is changed.
        images (Tensor): One image, (1, C, H, W).

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
        # timm's have the activation in them.
        rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, 'act') else nn.Identity()
        setattr(parent, name, rest.eval())


def find_pairs(network, images):
    """Find the batch norms that take the output of a convolution or linear layer.

    Args:
        network (nn.Module): The network.
        images (Tensor): One image, (1, C, H, W).

    Returns:
        list[tuple[nn.Module, nn.Module]]: Layers and batch norms, each of which is in one pair.
        That nothing else takes the output of the layer is not checked.
    """
    makers, pairs = {}, []

    def note_output(layer, args, output):
        # Keeping the output keeps its id from being given to another.
        makers[id(output)] = (layer, output, output._version)

    def note_input(norm, args):
        layer, _, version = makers.get(id(args[0]), (None, None, None))
        # What an activation has changed in place since is no longer the layer's output.
        if layer is not None and args[0]._version == version:
            pairs.append((layer, norm))

    handles = []
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(note_output))
        elif isinstance(module, _BatchNorm) and module.affine and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(note_input))
    network(images)
    for handle in handles:
        handle.remove()
    # Not what is shared.
    modules = [module for pair in pairs for module in pair]
    return [pair for pair in pairs if all(modules.count(module) == 1 for module in pair)]
