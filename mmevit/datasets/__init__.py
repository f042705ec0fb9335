"""Digits, class folders, annotation files and image loading."""

from .class_folders import split_class_folders
from .digits import prepare_digits
from .loading import LoadReadableImage

__all__ = ['LoadReadableImage', 'prepare_digits', 'split_class_folders']
