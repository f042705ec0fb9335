"""Optimizer wrappers with adaptive gradient clipping."""

from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from mmevit.utils.errors import ConfigError

from .mixed_precision import Bfloat16OptimWrapper


class AdaptiveClipping(OptimWrapper):
    """Mixin that clips the gradient of each unit relative to the norm of its weights.

    From `High-Performance Large-Scale Image Recognition Without Normalization
    <https://arxiv.org/abs/2102.06171>`_, Section 4.1, as implemented in timm: if the norm of the
    gradient of an output unit exceeds ``clip_factor * max(norm of its weights, eps)``, the gradient
    is scaled down to it. Unlike in the paper, the last layer is clipped too, as in the training of
    EfficientViT::

        optim_wrapper = dict(
            type='AdaptiveClipOptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3),
            clip_grad=dict(clip_factor=0.02),
        )

    Args:
        clip_grad: ``clip_factor``, above 0, and optionally ``eps`` (default: 1e-3) and
            ``norm_type`` (default: 2).
        **kwargs: Arguments of the optimizer wrapper.

    Raises:
        ConfigError: If ``clip_grad`` is invalid, or timm is not installed.
    """

    def __init__(self, *args: Any, clip_grad: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = clip_grad or {}
        is_known = settings.keys() <= {'clip_factor', 'eps', 'norm_type'}
        if not is_known or not settings.get('clip_factor', 0) > 0:
            raise ConfigError(
                f'optim_wrapper.clip_grad={clip_grad} is not valid for {type(self).__name__}. Set '
                'clip_factor, above 0, and optionally eps and norm_type.'
            )
        try:
            from timm.utils.agc import adaptive_clip_grad
        except ImportError as error:
            raise ConfigError(
                f'{type(self).__name__} requires timm, which is not installed. Run pip install '
                'timm.'
            ) from error
        self.adaptive_clip_grad = adaptive_clip_grad
        self.clip_grad_kwargs = settings

    # mmengine calls this in `step`, after AMP has unscaled the gradients; no public method is
    # called there.
    def _clip_grad(self) -> None:
        for group in self.optimizer.param_groups:
            self.adaptive_clip_grad(group['params'], **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipOptimWrapper(AdaptiveClipping):
    """:class:`mmengine.optim.OptimWrapper` with adaptive gradient clipping."""


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipAmpOptimWrapper(AdaptiveClipping, AmpOptimWrapper):
    """:class:`mmengine.optim.AmpOptimWrapper` with adaptive gradient clipping."""


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipBfloat16OptimWrapper(AdaptiveClipping, Bfloat16OptimWrapper):
    """:class:`Bfloat16OptimWrapper` with adaptive gradient clipping."""
