"""EfficientViT (CVPR 2023, cascaded group attention) as a backbone for OpenMMLab.

Importing this registers everything with mmengine, so that a config of any OpenMMLab library finds
it by name after ``custom_imports = dict(imports=['mmevit'])``. Without PyTorch or mmengine only
:mod:`mmevit.runtime` can be imported.
"""

import warnings
from importlib.util import find_spec
from typing import Any

from .utils.versions import check_libraries
from .version import __version__

__all__ = [
    'EfficientViT',
    '__version__',
    'apis',
    'checkpoint',
    'datasets',
    'deploy',
    'engine',
    'models',
]

if find_spec('torch') and find_spec('mmengine'):
    check_libraries()
    # Importing mmdet warns of it. A config that needs it is refused, see `check_evaluator`.
    warnings.filterwarnings('ignore', 'faster_coco_eval is not installed', module='mmdet')

    from .utils import openmmlab  # noqa: F401  changes OpenMMLab

    from . import apis, checkpoint, datasets, deploy, engine, models  # isort: skip
    from .models import EfficientViT
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            check_libraries()
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
