"""Patches of OpenMMLab where it has no public hook, each with the reason."""

from importlib.util import find_spec

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

# `mmengine.hub.get_config('mmevit::...')` looks up the distribution of a package in this table. It
# is the module name: for a distribution name, the original mmengine searches site-packages, where
# editable installations have no files.
MODULE2PACKAGE['mmevit'] = 'mmevit'
if find_spec('mmseg'):
    # mmengine searches for the distribution mmsegmentation; the maintained build has another name.
    MODULE2PACKAGE['mmseg'] = 'mmseg'

find_base_config = Config._get_cfg_path


def find_base_config_without_scope(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Find a base config; settings from a ``mmevit::`` config have no scope.

    mmengine gives the settings of an inherited ``library::`` config the scope of that library. In a
    scope `mmevit`, no class of mmdet, mmpretrain or mmsegmentation would be found; the configs of
    mmevit set ``default_scope``.
    """
    path, scope = find_base_config(cfg_path, filename)
    return path, None if scope == 'mmevit' else scope


Config._get_cfg_path = staticmethod(find_base_config_without_scope)
