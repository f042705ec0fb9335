"""Prediction with exported files: NumPy, Pillow and ONNX Runtime or OpenVINO, without PyTorch."""

from .predictor import Predictor
from .results import Prediction

__all__ = ['Prediction', 'Predictor']
