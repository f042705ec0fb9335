"""EfficientViT (CVPR 2023, cascaded group attention) as a backbone for OpenMMLab.

Importing this registers everything with mmengine, so that a config of any OpenMMLab library finds
it by name after ``custom_imports = dict(imports=['mmevit'])``, and makes the models known to
mmpretrain's hub.
"""

from importlib import import_module

from .compatibility import check_libraries

check_libraries()

from .extending import register_all  # noqa: E402
from .hub import extend_openmmlab  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['EfficientViT', '__version__', 'checkpoint', 'datasets', 'engine', 'models']

register_all()
extend_openmmlab()


def __dir__():
    return sorted({*globals(), *__all__})


def __getattr__(name):
    if name == 'EfficientViT':
        return import_module(f'{__name__}.models').EfficientViT
    if name in __all__:
        return import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
