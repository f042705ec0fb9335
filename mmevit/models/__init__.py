"""The network: backbone, necks and heads. Importing this registers them with OpenMMLab."""

from .efficientvit import EfficientViT

__all__ = ['EfficientViT']
