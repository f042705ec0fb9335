"""Changes to OpenMMLab for which it has no public hook, each with the reason."""

from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE

# `mmengine.hub.get_config('mmevit::...')` looks up the distribution of a package here. A module
# name: for a distribution, the original mmengine looks for the files of an editable installation
# in site-packages, where pip does not put them.
MODULE2PACKAGE['mmevit'] = 'mmevit'
if find_spec('mmseg'):
    # mmengine looks for the distribution mmsegmentation; the maintained build has another name.
    MODULE2PACKAGE['mmseg'] = 'mmseg'
