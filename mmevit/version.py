"""The version of mmevit."""

__version__ = '0.1.0'
