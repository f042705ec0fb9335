"""The data of the demos, class folders of one's own, and loading that survives broken files."""

from .class_folders import split_class_folders
from .digits import prepare_digits
from .loading import LoadReadableImage

__all__ = ['LoadReadableImage', 'prepare_digits', 'split_class_folders']
