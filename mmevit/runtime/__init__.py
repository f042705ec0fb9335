"""Prediction with exported files: NumPy, Pillow and a runtime, without PyTorch."""

from .predictor import Predictor
from .results import Prediction

__all__ = ['Prediction', 'Predictor']
