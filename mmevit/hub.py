"""Makes the configs and the published models known to OpenMMLab by name."""

from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE

# Where mim and mmengine look in an installed package.
MIM_FOLDER = Path(__file__).parent / '.mim'


def register_names():
    """Have OpenMMLab find ``mmevit::`` configs and, if mmpretrain is there, our classifiers.

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
    if find_spec('mmpretrain'):
        from mmpretrain.apis import ModelHub

        ModelHub.register_model_index(
            MIM_FOLDER / 'configs/efficientvit/classification_metafile.yml', MIM_FOLDER
        )
