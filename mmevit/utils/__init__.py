"""What every part of the package uses."""

from . import openmmlab  # noqa: F401  changes OpenMMLab
