"""Checkpoints of mmevit, the authors and timm: safe reading, key names, checks that they fit."""

from .loader import convert_checkpoint, load_from_evit
from .matching import require_fit
from .names import convert_names
from .reading import forbid_code_in_checkpoints, read_checkpoint

__all__ = [
    'convert_checkpoint',
    'convert_names',
    'forbid_code_in_checkpoints',
    'load_from_evit',
    'read_checkpoint',
    'require_fit',
]
