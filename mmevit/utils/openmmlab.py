"""Patches of OpenMMLab where it has no public hook, each with the reason."""

from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE

# `mmengine.hub.get_config('mmevit::...')` looks up the distribution of a package in this table. It
# is the module name: for a distribution name, the original mmengine searches site-packages, where
# editable installations have no files.
MODULE2PACKAGE['mmevit'] = 'mmevit'
if find_spec('mmseg'):
    # mmengine searches for the distribution mmsegmentation; the maintained build has another name.
    MODULE2PACKAGE['mmseg'] = 'mmseg'
