"""Detectors that learn from a teacher. They extend mmdet."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import SingleStageDetector, TwoStageDetector
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from mmevit.utils.errors import ConfigError

from .teacher import HasTeacher


class DistilledDetector(HasTeacher):
    """Detector whose neck learns from the neck of a frozen teacher.

    From `Channel-wise Knowledge Distillation for Dense Prediction
    <https://arxiv.org/abs/2011.13256>`_, Equations 3 and 4. The additional loss is the sum over
    the levels of

    ``w T^2 / C sum_c KL(softmax(t_c / T) || softmax(s_c / T))``

    with the weight w, the temperature T, and the softmax over the pixels of channel c of C of the
    teacher's map t and of the student's map s, which a 1x1 convolution maps to the teacher's
    channels. It is the mean over the images.

    The teacher is not a submodule, see :class:`HasTeacher`.

    Args:
        teacher: Config of a detector of mmdet with pretrained weights in ``init_cfg``, or the name
            of a config of mmdet with released weights, such as
            ``'mmdet::rtmdet/rtmdet_m_8xb32-300e_coco.py'``. It gets the student's images, in the
            channel order and normalization of its own ``data_preprocessor``. Its neck has the
            student's strides, and perhaps others.
        student_channels: Channels of each map of the student's neck.
        teacher_channels: Channels of the maps of the teacher's neck.
        distillation_weight: Weight w of the teacher's loss.
        temperature: T, above 0.
        **kwargs: The arguments of the detector.

    Raises:
        ConfigError: If the temperature is out of range. In training, if the teacher cannot be
            built, or its maps have other sizes or channels.
    """

    registry = MMDET_MODELS
    neck: nn.Module

    def __init__(
        self,
        *,
        teacher: dict | str,
        student_channels: Sequence[int],
        teacher_channels: int,
        distillation_weight: float = 1.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if temperature <= 0:
            raise ConfigError(f'temperature={temperature} is out of range. Pass a value above 0.')
        super().__init__(**kwargs)
        self.teacher_cfg = teacher
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.adapters = nn.ModuleList(
            nn.Conv2d(channels, teacher_channels, 1) for channels in student_channels
        )

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict:
        """Compute the detector's own losses and ``loss_distillation``."""
        maps: list[Tensor] = []
        with self.neck.register_forward_hook(lambda *args: maps.extend(args[2])):
            losses = super().loss(batch_inputs, batch_data_samples)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            teacher_maps = self.teacher.extract_feat(self.normalize_for_teacher(batch_inputs))
        by_size = {map_.shape[2:]: map_ for map_ in teacher_maps}
        divergences = []
        for adapter, map_ in zip(self.adapters, maps, strict=True):
            map_, wanted = adapter(map_), by_size.get(map_.shape[2:])
            if wanted is None or wanted.shape != map_.shape:
                shapes = [tuple(wanted.shape[1:]) for wanted in teacher_maps]
                raise ConfigError(
                    f'The student has a map of (channels, height, width) {tuple(map_.shape[1:])} '
                    f'after its adapter, but the teacher has {shapes}. Use a teacher with the '
                    "same strides, and its neck's channels in teacher_channels."
                )
            divergences.append(channel_wise_divergence(map_, wanted, self.temperature))
        return {**losses, 'loss_distillation': self.distillation_weight * sum(divergences)}


def channel_wise_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compare where the channels of two maps (N, C, H, W) are active (Equation 4)."""
    student_, teacher_ = (
        log_softmax(maps.flatten(2) / temperature, dim=2) for maps in (student, teacher)
    )
    divergence = kl_div(student_, teacher_, reduction='sum', log_target=True)
    return temperature**2 / (student.shape[0] * student.shape[1]) * divergence


@MODELS.register_module()
class DistilledSingleStageDetector(DistilledDetector, SingleStageDetector):
    """A one-stage detector, such as RetinaNet or RTMDet; see :class:`DistilledDetector`."""


@MODELS.register_module()
class DistilledTwoStageDetector(DistilledDetector, TwoStageDetector):
    """A two-stage detector, such as Faster or Mask R-CNN; see :class:`DistilledDetector`."""
