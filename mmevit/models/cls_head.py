"""The classification head, for those who have mmpretrain."""

import torch
from mmengine.registry import MODELS
from mmpretrain.models.heads import LeViTClsHead


@MODELS.register_module()
class EfficientViTClsHead(LeViTClsHead):
    """Batch norm and a linear layer on pooled features; mmpretrain's head, but it trains any way.

    With a second head for distillation, the scores are the mean of the two. Trained on labels
    alone, as in fine-tuning, both learn from them through that mean; with a teacher,
    :class:`DistilledImageClassifier` gives each its own loss.

    Args:
        in_channels (int): Channels of the pooled features.
        num_classes (int): Number of classes. Defaults to 1000.
        distillation (bool): Whether there is a second such head, to learn from a teacher.
            Defaults to False.
        deploy (bool): Whether to build the folded form, to load the weights of a head after
            :meth:`switch_to_deploy`. Defaults to False.
        init_cfg (dict, optional): Config of the initialisation. Defaults to a truncated normal
            distribution of standard deviation 0.02 for the linear layers.
        **kwargs: The arguments of :class:`mmpretrain.models.heads.ClsHead`, such as ``loss``.

    Example:
        >>> import torch
        >>> head = EfficientViTClsHead(in_channels=192, num_classes=10, distillation=True)
        >>> head((torch.rand(2, 192),)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels,
        num_classes=1000,
        distillation=False,
        deploy=False,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        **kwargs,
    ):
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            distillation=distillation,
            init_cfg=init_cfg,
            **kwargs,
        )
        if deploy:
            self.switch_to_deploy()

    def forward(self, feats):
        """Score the classes, in training and evaluation alike.

        Args:
            feats (tuple[Tensor]): Pooled features, of which the last, (N, in_channels), is taken.

        Returns:
            Tensor: (N, num_classes), before softmax.
        """
        if self.deploy or not self.distillation:
            return self.head(self.pre_logits(feats))
        scores, imitating_scores = self.forward_separately(feats)
        return (scores + imitating_scores) / 2

    def forward_separately(self, feats):
        """Score the classes by each of the two heads.

        Args:
            feats (tuple[Tensor]): As for :meth:`forward`.

        Returns:
            tuple[Tensor, Tensor]: Scores of the head for the labels and of the one for a teacher,
            (N, num_classes) each.
        """
        pooled = self.pre_logits(feats)
        return self.head(pooled), self.head_dist(pooled)

    def switch_to_deploy(self):
        """Fold batch norm into the linear layer, and the mean of two heads into one, for inference.

        The folded head gives the same scores as this one in evaluation mode. It is not for
        training.
        """
        if self.deploy:
            return
        linear = self.head.fuse()
        if self.distillation:
            imitating = self.head_dist.fuse()
            with torch.no_grad():
                linear.weight.add_(imitating.weight).div_(2)
                linear.bias.add_(imitating.bias).div_(2)
            del self.head_dist
        self.head = linear
        self.deploy = True
