"""Classifiers that learn from a teacher. They extend mmpretrain."""

from typing import Any

import torch
from mmengine.registry import MODELS
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from mmevit.utils.errors import ConfigError

from .cls_head import EfficientViTClsHead
from .teacher import HasTeacher


@MODELS.register_module()
class DistilledImageClassifier(HasTeacher, ImageClassifier):
    """Image classifier whose second head learns from a frozen teacher.

    From `Training data-efficient image transformers & distillation through attention
    <https://arxiv.org/abs/2012.12877>`_, Section 4. The loss is

    - hard (Equation 3): ``(1 - w) CE(s, y) + w CE(s', argmax t)``
    - soft (Equation 2): ``(1 - w) CE(s, y) + w T^2 KL(softmax(t / T) || softmax(s' / T))``

    with the logits s of the head for labels and s' of the head for the teacher, the labels y, the
    teacher's logits t, the weight w and the temperature T. CE(s, y) is the head's own loss.

    The teacher is not a submodule, see :class:`HasTeacher`.

    Args:
        teacher: Config of an image classifier of mmpretrain with pretrained weights, such as
            ``dict(type='TimmClassifier', model_name='regnety_160', pretrained=True)`` or
            ``dict(type='ImageClassifier', ..., init_cfg=dict(type='Pretrained', ...))``, or the
            name of a config of mmpretrain with released weights. It gets the student's images, in
            the channel order and normalization of its own ``data_preprocessor``, or as for the
            student if it has none.
        distillation_type: ``'hard'`` or ``'soft'``.
        distillation_weight: Weight w of the teacher's loss, from 0 to 1.
        temperature: T, above 0, for soft distillation.
        **kwargs: The arguments of :class:`mmpretrain.models.ImageClassifier`. The head is an
            :class:`EfficientViTClsHead` with ``distillation=True``.

    Raises:
        ConfigError: If an argument is out of range or there is no second head. In training, if
            the teacher cannot be built, or has another number of classes than the student.

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

    head: EfficientViTClsHead
    registry = MMPRETRAIN_MODELS

    def __init__(
        self,
        teacher: dict | str,
        distillation_type: str = 'hard',
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if distillation_type not in ('hard', 'soft'):
            raise ConfigError(
                f"distillation_type={distillation_type!r} is unknown. Pass 'hard' or 'soft'."
            )
        if not 0 <= distillation_weight <= 1:
            raise ConfigError(
                f'distillation_weight={distillation_weight} is out of range. Pass 0 to 1.'
            )
        if temperature <= 0:
            raise ConfigError(f'temperature={temperature} is out of range. Pass a value above 0.')
        super().__init__(**kwargs)
        if not getattr(self.head, 'distillation', False):
            raise ConfigError(
                'The model has no second head to learn from the teacher. Set '
                "head=dict(type='EfficientViTClsHead', distillation=True, ...)."
            )
        self.teacher_cfg = teacher
        self.distillation_type = distillation_type
        self.distillation_weight = distillation_weight
        self.temperature = temperature

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the loss against the labels and the loss against the teacher.

        Args:
            inputs: Images, normalized for the student, (N, C, H, W).
            data_samples: Their labels, or soft labels after Mixup or CutMix.

        Returns:
            ``loss_cls`` and ``loss_distillation``, weighted, to be summed.
        """
        teacher_logits = self.compute_teacher_logits(inputs)
        logits, distillation_logits = self.head.forward_separately(self.extract_feat(inputs))
        if teacher_logits.shape != distillation_logits.shape:
            raise ConfigError(
                f'The teacher has {teacher_logits.shape[1]} classes and the student '
                f'{distillation_logits.shape[1]}. Use a teacher of the same classes.'
            )
        losses = self.head._get_loss(logits, data_samples)
        # Renamed, since parse_losses() logs the sum of all losses as 'loss'.
        losses['loss_cls'] = (1 - self.distillation_weight) * losses.pop('loss')
        loss = self.distillation_loss(distillation_logits, teacher_logits)
        return {**losses, 'loss_distillation': self.distillation_weight * loss}

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the mean loss of logits against the teacher's, (N, num_classes) each."""
        if self.distillation_type == 'hard':
            return cross_entropy(logits, teacher_logits.argmax(1))
        student, teacher = (
            log_softmax(x / self.temperature, dim=1) for x in (logits, teacher_logits)
        )
        divergence = kl_div(student, teacher, reduction='batchmean', log_target=True)
        return self.temperature**2 * divergence

    @torch.no_grad()
    def compute_teacher_logits(self, inputs: Tensor) -> Tensor:
        """Return the teacher's logits of images that are normalized for the student."""
        return self.teacher(self.normalize_for_teacher(inputs), mode='tensor')
