"""EfficientViT (CVPR 2023, cascaded group attention) as a backbone for OpenMMLab.

Importing this registers everything with mmengine, so that a config of any OpenMMLab library finds
it by name after ``custom_imports = dict(imports=['mmevit'])``.
"""

import warnings

from .utils.versions import check_libraries

check_libraries()
# Importing mmdet warns of it. A config that needs it is refused, see `check_evaluator`.
warnings.filterwarnings('ignore', 'faster_coco_eval is not installed', module='mmdet')

from . import apis, checkpoint, datasets, deploy, engine, models  # noqa: E402
from .models import EfficientViT  # noqa: E402
from .version import __version__  # noqa: E402

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
