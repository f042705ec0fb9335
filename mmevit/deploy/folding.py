"""Folding complete models for inference."""

from copy import deepcopy
from typing import TypeVar

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmevit.utils.errors import UserError, warn
from mmevit.utils.pytorch import unwrap

Model = TypeVar('Model', bound=nn.Module)


def fold(model: Model) -> Model:
    """Fold every part of a model that has a ``switch_to_deploy()``, in place.

    These are mmevit's backbone, neck and head, and mmpretrain's re-parameterised networks.

    Returns:
        The model, in evaluation mode.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> fold(EfficientViT('m0')).deploy
        True
    """
    model.eval()
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()  # pyright: ignore[reportCallIssue]
    else:
        for part in model.children():
            fold(part)
    return model


def try_to_fold(model: Model) -> Model:
    """Return a folded copy, or log a warning and return the model if it cannot be folded."""
    try:
        return fold(deepcopy(model))
    except UserError as error:
        warn(f'The model is not folded: {error}')
        return model.eval()


@HOOKS.register_module()
class FoldHook(Hook):
    """Evaluate a folded copy of the model."""

    # After EMAHook has swapped in the averaged weights. It swaps them back in the original model.
    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the model by the folded copy."""
        self.unfolded = runner.model
        runner.model = fold(deepcopy(unwrap(runner.model)))

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the model."""
        runner.model = self.unfolded
