"""The classification head, for those who have mmpretrain."""

import logging

from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmpretrain.models.heads import LeViTClsHead


@MODELS.register_module()
class EfficientViTClsHead(LeViTClsHead):
    """Batch norm and a linear layer on pooled features; mmpretrain's head, but without surprises.

    Weights for another number of classes leave the head as it was initialised, with a warning.

    Args:
        num_classes (int): Number of classes. Defaults to 1000.
        in_channels (int): Channels of the pooled features.
        distillation (bool): Whether there is a second such head, the two averaged at test time.
            Defaults to False.
        **kwargs: The other arguments of :class:`mmpretrain.models.heads.LeViTClsHead`.

    Example:
        >>> import torch
        >>> head = EfficientViTClsHead(num_classes=10, in_channels=192).eval()
        >>> head((torch.rand(2, 192),)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes=1000, in_channels=None, distillation=False, **kwargs):
        super().__init__(
            num_classes=num_classes, in_channels=in_channels, distillation=distillation, **kwargs
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Keep a head of another number of classes out."""
        weight = state_dict.get(f'{prefix}head.linear.weight')
        if weight is not None and weight.shape[0] != self.num_classes:
            print_log(
                f'The weights are for {weight.shape[0]} classes and this model has '
                f'{self.num_classes}: the head is not loaded and starts from its initialisation.',
                logger='current',
                level=logging.WARNING,
            )
            for name in [name for name in state_dict if name.startswith(prefix)]:
                del state_dict[name]
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)
