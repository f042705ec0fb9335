"""Makes the configs and the published models known to OpenMMLab, and videos to its inferencers."""

from functools import wraps
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.infer import BaseInferencer

from mmevit.engine.video import accept_videos
from mmevit.errors import ConfigError

# Where mim and mmengine look in an installed package.
MIM_FOLDER = Path(__file__).parent / '.mim'


def extend_openmmlab():
    """Have OpenMMLab find ``mmevit::`` configs and our models by name, and read videos.

    Example:
        >>> import mmengine.hub, mmevit, mmpretrain
        >>> mmengine.hub.get_config('mmevit::efficientvit/evit_m4_in1k.py').model.backbone.arch
        'm4'
        >>> mmpretrain.list_models('efficientvit-m0*')
        ['efficientvit-m0_8xb256_in1k']
    """
    MODULE2PACKAGE['mmevit'] = 'mmevit'
    if find_spec('mmseg'):
        # mmengine looks for the distribution mmsegmentation, which the maintained build is not.
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    # mmengine's inferencers know the models of their own library and offer no place to add some.
    BaseInferencer._load_model_from_metafile = know_our_models(
        BaseInferencer._load_model_from_metafile
    )
    # They lack videos too.
    if find_spec('mmdet'):
        from mmdet.apis import DetInferencer

        accept_videos(DetInferencer)
    if find_spec('mmseg'):
        from mmseg.apis import MMSegInferencer

        accept_videos(MMSegInferencer)
    if find_spec('mmpretrain'):
        from mmpretrain.apis import ModelHub

        ModelHub.register_model_index(
            MIM_FOLDER / 'configs/efficientvit/classification_metafile.yml', MIM_FOLDER
        )


def know_our_models(load_model):
    """Extend an inferencer's search for a model to ours.

    Args:
        load_model (callable): Maps an inferencer and a name to a config and weights.

    Returns:
        callable: The same, but ``mmevit::efficientvit/retinanet_evit_m4.py`` and names such as
        ``retinanet_efficientvit-m4_fpn_1x_coco`` are found too, and it raises a
        :class:`ConfigError` for a ``mmevit::`` config that there is not.
    """

    @wraps(load_model)
    def load_ours_or_theirs(inferencer, name):
        for model in BaseInferencer._get_models_from_metafile(str(MIM_FOLDER)):
            if name in (model['Name'], f'mmevit::{model["Config"].removeprefix("configs/")}'):
                return Config.fromfile(MIM_FOLDER / model['Config']), model.get('Weights')
        if not name.startswith('mmevit::'):
            return load_model(inferencer, name)
        path = MIM_FOLDER / 'configs' / name.removeprefix('mmevit::')
        if not path.is_file():
            known = sorted(path.name for path in MIM_FOLDER.glob('configs/efficientvit/*.py'))
            raise ConfigError(
                f'{name} is none of the configs mmevit::efficientvit/..., {", ".join(known)}.'
            )
        return Config.fromfile(path), None

    return load_ours_or_theirs
