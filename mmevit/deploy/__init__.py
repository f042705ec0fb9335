"""Folding models, exporting them, and running exported files."""

from .evaluation import ExportedClassifier, ExportedDetector, ExportedSegmentor
from .exporting import TARGETS, export, load_exported
from .folding import FoldHook, fold, try_to_fold

__all__ = [
    'TARGETS',
    'ExportedClassifier',
    'ExportedDetector',
    'ExportedSegmentor',
    'FoldHook',
    'export',
    'fold',
    'load_exported',
    'try_to_fold',
]
