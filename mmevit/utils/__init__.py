"""Configs, files, tables, errors and versions."""

from . import openmmlab  # noqa: F401  changes OpenMMLab
