"""Training with a teacher, for those who have mmpretrain."""

import logging
from functools import cached_property

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from mmevit.utils.errors import ConfigError


@MODELS.register_module()
class DistilledImageClassifier(ImageClassifier):
    """Image classifier whose second head learns from a frozen teacher.

    From `Training data-efficient image transformers & distillation through attention
    <https://arxiv.org/abs/2012.12877>`_, Section 4. The loss is

    - hard (Equation 3): ``(1 - w) CE(s, y) + w CE(s', argmax t)``
    - soft (Equation 2): ``(1 - w) CE(s, y) + w T^2 KL(softmax(t / T) || softmax(s' / T))``

    with the scores s of the head for labels and s' of the one for the teacher, the labels y, the
    teacher's scores t, the weight w and the temperature T. CE(s, y) is the head's own loss.

    The teacher is built at the first training step, so that a model for evaluation needs none. It
    is no part of this model: neither checkpoints nor averaged weights nor optimizers hold it, and
    it stays in evaluation mode.

    Args:
        teacher (dict): Config of an image classifier of mmpretrain with pretrained weights, such
            as ``dict(type='TimmClassifier', model_name='regnety_160', pretrained=True)``, or
            ``dict(type='ImageClassifier', ..., init_cfg=dict(type='Pretrained', ...))``. It sees
            the images that the student sees; if its ``data_preprocessor`` has another ``mean``
            and ``std``, they are normalised anew.
        distillation_type (str): ``'hard'`` or ``'soft'``. Defaults to ``'hard'``.
        distillation_weight (float): Weight w of the teacher's part, from 0 to 1. Defaults to 0.5.
        temperature (float): T, above 0, for soft distillation. Defaults to 1.
        **kwargs: The arguments of :class:`mmpretrain.models.ImageClassifier`. The head is an
            :class:`EfficientViTClsHead` with ``distillation=True``.

    Raises:
        ConfigError: If an argument is out of range or there is no second head; in training, if
            the teacher cannot be had, or has other classes than the student.

    Example:
        >>> import torch
        >>> from mmpretrain.structures import DataSample
        >>> model = DistilledImageClassifier(
        ...     teacher=dict(type='TimmClassifier', model_name='resnet10t', num_classes=5),
        ...     backbone=dict(type='EfficientViT', arch='m0', out_indices=(2,)),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(
        ...         type='EfficientViTClsHead', num_classes=5, in_channels=192, distillation=True
        ...     ),
        ... )
        >>> samples = [DataSample().set_gt_label(label) for label in (1, 3)]
        >>> sorted(model(torch.rand(2, 3, 64, 64), samples, mode='loss'))
        ['loss_cls', 'loss_distillation']
    """

    def __init__(
        self,
        teacher,
        distillation_type='hard',
        distillation_weight=0.5,
        temperature=1.0,
        **kwargs,
    ):
        if distillation_type not in ('hard', 'soft'):
            raise ConfigError(
                f"distillation_type is {distillation_type!r}, but must be 'hard' or 'soft'."
            )
        if not 0 <= distillation_weight <= 1:
            raise ConfigError(
                f'distillation_weight is {distillation_weight}, but must be from 0 to 1.'
            )
        if temperature <= 0:
            raise ConfigError(f'temperature is {temperature}, but must be above 0.')
        super().__init__(**kwargs)
        if not getattr(self.head, 'distillation', False):
            raise ConfigError(
                'A teacher needs a head to learn from it: '
                "head=dict(type='EfficientViTClsHead', distillation=True, ...)."
            )
        self.teacher_cfg = teacher
        self.distillation_type = distillation_type
        self.distillation_weight = distillation_weight
        self.temperature = temperature

    def loss(self, inputs, data_samples):
        """Compute the loss against the labels and the loss against the teacher.

        Args:
            inputs (Tensor): Images as the student takes them, (N, C, H, W).
            data_samples (list[DataSample]): Their labels, or scores after mixing.

        Returns:
            dict[str, Tensor]: ``loss_cls`` and ``loss_distillation``, weighted, to be summed.

        Raises:
            ConfigError: If the teacher has other classes than the student.
        """
        teacher_scores = self.ask_teacher(inputs)
        scores, imitating_scores = self.head.forward_separately(self.extract_feat(inputs))
        if teacher_scores.shape != imitating_scores.shape:
            raise ConfigError(
                f'The teacher scores {teacher_scores.shape[1]} classes and the student '
                f'{imitating_scores.shape[1]}: give a teacher of the same classes.'
            )
        losses = self.head._get_loss(scores, data_samples)
        # As 'loss' the log shows the sum.
        losses['loss_cls'] = (1 - self.distillation_weight) * losses.pop('loss')
        losses['loss_distillation'] = self.distillation_weight * self.imitation_loss(
            imitating_scores, teacher_scores
        )
        return losses

    def imitation_loss(self, scores, teacher_scores):
        """Measure how far scores are from the teacher's.

        Args:
            scores (Tensor): (N, num_classes), before softmax.
            teacher_scores (Tensor): (N, num_classes), before softmax.

        Returns:
            Tensor: The mean over the images, a scalar.
        """
        if self.distillation_type == 'hard':
            return cross_entropy(scores, teacher_scores.argmax(1))
        divergence = kl_div(
            log_softmax(scores / self.temperature, 1),
            log_softmax(teacher_scores / self.temperature, 1),
            reduction='batchmean',
            log_target=True,
        )
        return self.temperature**2 * divergence

    @torch.no_grad()
    def ask_teacher(self, inputs):
        """Score images by the teacher.

        Args:
            inputs (Tensor): Images as the student takes them, (N, C, H, W).

        Returns:
            Tensor: (N, num_classes), before softmax.
        """
        teacher = self.teacher.to(inputs.device)
        own, other = self.data_preprocessor, teacher.data_preprocessor
        if hasattr(own, 'mean') and hasattr(other, 'mean'):
            inputs = (inputs * own.std + own.mean - other.mean) / other.std
        return teacher(inputs, mode='tensor')

    # Cached in __dict__, where torch.nn.Module does not look for parts of itself.
    @cached_property
    def teacher(self):
        """BaseClassifier: The frozen teacher, with its pretrained weights."""
        try:
            teacher = MMPRETRAIN_MODELS.build(self.teacher_cfg)
            # Without an init_cfg it would undo what timm has loaded.
            if teacher.init_cfg:
                teacher.init_weights()
        # What a model raises at wrong arguments or without a network is its own business.
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ConfigError(
                f'The teacher {self.teacher_cfg} cannot be built or its weights cannot be had '
                f'({reason}): mend model.teacher, or load its weights from a file by init_cfg or '
                "by timm's checkpoint_path."
            ) from error
        if not (
            teacher.init_cfg
            or self.teacher_cfg.get('pretrained')
            or self.teacher_cfg.get('checkpoint_path')
        ):
            print_log(
                'The teacher starts from random weights: give it pretrained ones by init_cfg, '
                "or by pretrained=True or checkpoint_path if it is one of timm's.",
                logger='current',
                level=logging.WARNING,
            )
        return teacher.eval().requires_grad_(False)
