"""Makes our configs, models and weights known to OpenMMLab, and videos to its inferencers."""

from functools import partial, wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmevit.errors import ConfigError
from mmevit.extending import when_imported

# Where mim and mmengine look in an installed package.
MIM_FOLDER = Path(__file__).parent / '.mim'


def extend_openmmlab():
    """Have OpenMMLab find ``mmevit::``, ``evit://`` and our models by name, and read videos.

    Example:
        >>> import mmengine.hub, mmevit, mmpretrain
        >>> mmengine.hub.get_config('mmevit::efficientvit/evit_m4_in1k.py').model.backbone.arch
        'm4'
        >>> mmpretrain.list_models('efficientvit-m0*')
        ['efficientvit-m0_8xb256_in1k']
    """
    # A module's name: the original mmengine takes the files of a distribution to be among those of
    # all others, where `pip install -e` has not put them.
    MODULE2PACKAGE['mmevit'] = __name__
    if find_spec('mmseg'):
        # mmengine looks for the distribution mmsegmentation, which the maintained build is not.
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    when_imported('mmengine.runner', extend_checkpoint_loader)
    when_imported('mmengine.infer', extend_inferencers)
    for library in ('mmdet', 'mmseg'):
        when_imported(f'{library}.apis', partial(extend_videos, library))
    when_imported('mmpretrain.apis', extend_model_hub)


def extend_checkpoint_loader():
    """Have mmengine load ``evit://``."""
    from mmengine.runner import CheckpointLoader

    @CheckpointLoader.register_scheme(prefixes='evit://')
    def load_from_evit(filename, map_location=None):
        from mmevit import checkpoint

        return checkpoint.require_fit(checkpoint.load_from_evit(filename, map_location))


def extend_inferencers():
    """Have mmengine's inferencers find our models, since they offer no place to add some."""
    from mmengine.infer import BaseInferencer

    BaseInferencer._load_model_from_metafile = know_our_models(
        BaseInferencer._load_model_from_metafile
    )


def extend_videos(library):
    """Have the inferencer of a library take videos, which it lacks.

    Args:
        library (str): ``mmdet`` or ``mmseg``.
    """
    from mmevit.engine.video import accept_videos

    apis = import_module(f'{library}.apis')
    accept_videos(apis.DetInferencer if library == 'mmdet' else apis.MMSegInferencer)


def extend_model_hub():
    """Have mmpretrain's hub list our classifiers."""
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
    from mmengine.infer import BaseInferencer

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
