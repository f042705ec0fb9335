"""Data that the demos and tests are made of, and loading that outlives a broken file."""

from .digits import prepare_digits
from .loading import LoadReadableImage

__all__ = ['LoadReadableImage', 'prepare_digits']
