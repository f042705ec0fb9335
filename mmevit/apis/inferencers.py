"""OpenMMLab's inferencers for models of mmevit and for videos."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.infer import BaseInferencer

from mmevit.utils.configs import MIM_FOLDER
from mmevit.utils.errors import ConfigError
from mmevit.utils.inputs import VIDEO_SUFFIXES
from mmevit.utils.versions import can_import
from mmevit.utils.videos import Video


class EfficientViTInferencer(BaseInferencer):
    """Mixin for inferencers that finds models of mmevit by name, and accepts paths of videos.

    Models are named as in the model index, ``retinanet_efficientvit-m4_fpn_1x_coco``, or by their
    config, ``mmevit::efficientvit/retinanet_evit_m4.py``. The methods are private since
    inferencers have no public hooks for models and inputs.
    """

    def _load_model_from_metafile(self, model: str) -> tuple[Config, str | None]:
        """Find the config and the weights of a model."""
        for known in self._get_models_from_metafile(str(MIM_FOLDER)):
            if model in (known['Name'], f'mmevit::{known["Config"].removeprefix("configs/")}'):
                return Config.fromfile(MIM_FOLDER / known['Config']), known.get('Weights')
        if not model.startswith('mmevit::'):
            return super()._load_model_from_metafile(model)
        path = MIM_FOLDER / 'configs' / model.removeprefix('mmevit::')
        if not path.is_file():
            names = sorted(path.name for path in MIM_FOLDER.glob('configs/efficientvit/*.py'))
            raise ConfigError(
                f'{model} does not exist. The configs in mmevit::efficientvit/ are '
                f'{", ".join(names)}.'
            )
        return Config.fromfile(path), None

    def _inputs_to_list(self, inputs: Any) -> Sequence | Video:
        """List the inputs, or the frames of a video."""
        if not isinstance(inputs, str) or not inputs.lower().endswith(VIDEO_SUFFIXES):
            return super()._inputs_to_list(inputs)
        return Video(inputs)


if can_import('mmdet'):
    import mmdet.apis

    class DetInferencer(EfficientViTInferencer, mmdet.apis.DetInferencer):
        """:class:`mmdet.apis.DetInferencer` for models of mmevit and for videos."""


if can_import('mmseg'):
    import mmseg.apis

    class MMSegInferencer(EfficientViTInferencer, mmseg.apis.MMSegInferencer):
        """:class:`mmseg.apis.MMSegInferencer` for models of mmevit and for videos."""


CLASSIFIERS = MIM_FOLDER / 'configs/efficientvit/classification_metafile.yml'
if can_import('mmpretrain') and CLASSIFIERS.exists():
    from mmpretrain.apis import ModelHub

    # mmpretrain's own inferencer and `get_model` find our classifiers here.
    ModelHub.register_model_index(CLASSIFIERS, MIM_FOLDER)
