"""The classification head. It extends mmpretrain."""

from typing import Any

import torch
from mmengine.registry import MODELS
from mmpretrain.models.heads import LeViTClsHead
from torch import Tensor


@MODELS.register_module()
class EfficientViTClsHead(LeViTClsHead):
    """mmpretrain's ``LeViTClsHead`` with support for distillation training.

    Batch norm and a linear layer on pooled features. With a second head for distillation, the
    logits are the mean of the two. Trained without a teacher, as in fine-tuning, both heads learn
    from the labels through that mean. With a teacher, :class:`DistilledImageClassifier` gives each
    head its own loss.

    Args:
        in_channels: Channels of the pooled features.
        distillation: Whether there is a second head, to learn from a teacher.
        deploy: Whether to build the folded form, to load the weights of a head after
            :meth:`switch_to_deploy`.
        **kwargs: The arguments of :class:`mmpretrain.models.heads.ClsHead`, such as ``loss``.

    Example:
        >>> import torch
        >>> head = EfficientViTClsHead(in_channels=192, num_classes=10, distillation=True)
        >>> head((torch.rand(2, 192),)).shape
        torch.Size([2, 10])
    """

    head: Any  # mmpretrain's BatchNormLinear, nn.Linear once folded
    head_dist: Any

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1000,
        distillation: bool = False,
        deploy: bool = False,
        init_cfg: dict | None = dict(type='TruncNormal', layer='Linear', std=0.02),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            distillation=distillation,
            init_cfg=init_cfg,
            **kwargs,
        )
        if deploy:
            self.switch_to_deploy()

    def forward(self, feats: tuple[Tensor]) -> Tensor:
        """Map pooled features, the last of which is (N, in_channels), to (N, num_classes)."""
        if self.deploy or not self.distillation:
            return self.head(self.pre_logits(feats))
        logits, distillation_logits = self.forward_separately(feats)
        return (logits + distillation_logits) / 2

    def forward_separately(self, feats: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the logits of each head: the one for labels and the one for a teacher."""
        pooled = self.pre_logits(feats)
        return self.head(pooled), self.head_dist(pooled)

    def switch_to_deploy(self) -> None:
        """Fold batch norm and the second head into one linear layer, for inference only."""
        if self.deploy:
            return
        linear = self.head.fuse()
        if self.distillation:
            with torch.no_grad():
                for mean, other in zip(
                    linear.parameters(), self.head_dist.fuse().parameters(), strict=True
                ):
                    mean.add_(other).div_(2)
            del self.head_dist
        self.head = linear
        self.deploy = True
