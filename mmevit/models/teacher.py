"""The frozen teacher of a model that is distilled."""

from functools import cached_property
from typing import Any, ClassVar

from mmengine.hub import get_config
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mmevit.utils.errors import ConfigError, warn


class HasTeacher:
    """Add a frozen teacher to a model of mmpretrain or mmdet.

    The teacher is built in the first training step, so that evaluation does not need it. It is not
    a submodule: checkpoints, averaged weights and optimizers do not contain it, and it stays in
    evaluation mode.
    """

    registry: ClassVar[Registry]  # of the library, which builds the teacher
    teacher_cfg: dict | str
    data_preprocessor: Any  # the student's

    # Cached in __dict__, where torch.nn.Module does not look for submodules.
    @cached_property
    def teacher(self) -> Any:
        """The frozen teacher, with its pretrained weights.

        Raises:
            ConfigError: If it cannot be built, or its weights cannot be loaded.
        """
        try:
            cfg = read_settings(self.teacher_cfg)
            teacher = self.registry.build(cfg)
            # Without an init_cfg, init_weights() would overwrite what timm has loaded.
            if teacher.init_cfg:
                refuse_missing_weights(teacher)
                teacher.init_weights()
        # Wrong arguments and failed downloads raise different errors in each model.
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ConfigError(
                f'The teacher {self.teacher_cfg} cannot be built or its weights cannot be loaded '
                f'({reason}). Fix model.teacher, or load its weights from a file with init_cfg or '
                "with timm's checkpoint_path."
            ) from error
        sources = [cfg.get(name) for name in ('pretrained', 'checkpoint_path')]
        if not (teacher.init_cfg or any(sources)):
            warn(
                'The teacher has random weights. Load pretrained weights with init_cfg, or with '
                'pretrained=True or checkpoint_path for a model of timm.'
            )
        return teacher.eval().requires_grad_(False)

    def normalize_for_teacher(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W), normalized for the student, as the teacher expects them."""
        teacher = self.teacher.to(images.device).data_preprocessor
        student = self.data_preprocessor
        if not (hasattr(student, 'mean') and hasattr(teacher, 'mean')):
            return images
        images = images * student.std + student.mean
        if swaps_channels(student) != swaps_channels(teacher):
            images = images.flip(1)
        return (images - teacher.mean) / teacher.std


def read_settings(teacher: dict | str) -> dict:
    """Return the settings of a teacher, with the released weights if it is the name of a config."""
    if isinstance(teacher, dict):
        return teacher
    cfg = get_config(teacher, pretrained=True)
    return dict(cfg.model, init_cfg=dict(type='Pretrained', checkpoint=cfg.model_path))


def refuse_missing_weights(teacher: Any) -> None:
    """Raise ConfigError if weights are missing, which mmengine would leave random."""
    settings = teacher.init_cfg
    is_dict = isinstance(settings, dict)  # a list sets initial values by layer
    if not is_dict or settings['type'] != 'Pretrained' or settings.get('prefix'):
        return
    checkpoint = CheckpointLoader.load_checkpoint(settings['checkpoint'], 'cpu')
    given = checkpoint.get('state_dict', checkpoint)
    # Not in old checkpoints, and not used.
    own = {name for name in teacher.state_dict() if not name.endswith('num_batches_tracked')}
    missing = sorted(own - {name.removeprefix('module.') for name in given})
    if missing:
        raise ConfigError(f'{len(missing)} of {len(own)} weights are missing, such as {missing[0]}')


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor of mmpretrain or mmdet swaps the channels of BGR images."""
    is_swapping = getattr(preprocessor, '_channel_conversion', False)  # ImgDataPreprocessor
    return is_swapping or getattr(preprocessor, 'to_rgb', False)  # mmpretrain's
