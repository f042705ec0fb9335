"""Attention with channels first, for runtimes that store tensors so, such as ONNX Runtime."""

from torch import nn

from mmevit.models.attention import WindowAttention


def put_channels_first(network: nn.Module) -> nn.Module:
    """Store the windows of folded attention with channels first, in place; outputs stay the same.

    Args:
        network: The network. Attention that is not folded stays as it is.

    Returns:
        The network.
    """
    for module in list(network.modules()):
        if isinstance(module, WindowAttention):
            module.put_channels_first()
    return network
