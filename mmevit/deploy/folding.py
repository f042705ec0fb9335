"""Folding a whole model for inference."""

import logging
from copy import deepcopy

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from mmevit.utils.errors import UserError
from mmevit.utils.models import unwrap


def fold(model):
    """Fold every part of a model that knows its folded form, for inference.

    These are our backbone, neck and head, and all else with a ``switch_to_deploy()``, as
    mmpretrain's re-parameterised networks have it.

    Args:
        model (nn.Module): The model, which is changed and left in evaluation mode.

    Returns:
        nn.Module: The model.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> fold(EfficientViT('m0')).deploy
        True
    """
    model.eval()
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
    else:
        for part in model.children():
            fold(part)
    return model


def try_to_fold(model):
    """Fold a copy of a model, or say why it stays as it is.

    Args:
        model (nn.Module): The model.

    Returns:
        nn.Module: The folded copy; the model itself, in evaluation mode, if it has normalisation
        that cannot be folded.
    """
    try:
        return fold(deepcopy(model))
    except UserError as error:
        print_log(f'The model is not folded: {error}', logger='current', level=logging.WARNING)
        return model.eval()


@HOOKS.register_module()
class FoldHook(Hook):
    """Evaluate a folded copy of the model."""

    # After the hook that puts averaged weights in place, and a copy, since that takes them out.
    priority = 'LOWEST'

    def before_test_epoch(self, runner):
        """Put the folded copy in the model's place."""
        self.unfolded = runner.model
        runner.model = fold(deepcopy(unwrap(runner.model)))

    def after_test_epoch(self, runner, metrics=None):
        """Put the model back."""
        runner.model = self.unfolded
