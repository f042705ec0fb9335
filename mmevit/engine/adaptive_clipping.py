"""Adaptive gradient clipping, as wrappers of any optimizer."""

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from mmevit.utils.errors import ConfigError

from .mixed_precision import Bfloat16OptimWrapper


class AdaptiveClipping:
    """Clip each unit's gradient in proportion to the norm of its weights.

    From `High-Performance Large-Scale Image Recognition Without Normalization
    <https://arxiv.org/abs/2102.06171>`_, Section 4.1, computed by timm: the gradient of an output
    unit whose norm is above ``clip_factor * max(norm of its weights, eps)`` is scaled down to it.
    The last layer, which that paper leaves out, is clipped too, as EfficientViT was trained::

        optim_wrapper = dict(
            type='AdaptiveClipOptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3),
            clip_grad=dict(clip_factor=0.02),
        )

    Args:
        clip_grad (dict): ``clip_factor``, above 0, and optionally ``eps``, 1e-3 unless given, and
            ``norm_type``, 2 unless given.
        **kwargs: The arguments of the wrapper that this is mixed into.

    Raises:
        ConfigError: If ``clip_grad`` is something else, or timm is not installed.
    """

    def __init__(self, *args, clip_grad=None, **kwargs):
        super().__init__(*args, **kwargs)
        settings = clip_grad or {}
        is_known = settings.keys() <= {'clip_factor', 'eps', 'norm_type'}
        if not is_known or not settings.get('clip_factor', 0) > 0:
            raise ConfigError(
                f'optim_wrapper.clip_grad is {clip_grad}, but {type(self).__name__} needs '
                'clip_factor, above 0, and takes eps and norm_type besides.'
            )
        try:
            from timm.utils.agc import adaptive_clip_grad
        except ImportError as error:
            raise ConfigError(
                f'{type(self).__name__} clips by timm, which is not installed: pip install timm.'
            ) from error
        self.adaptive_clip_grad = adaptive_clip_grad
        # What the wrappers look at before they step, after AMP has unscaled the gradients.
        self.clip_grad_kwargs = settings

    def _clip_grad(self):
        for group in self.optimizer.param_groups:
            self.adaptive_clip_grad(group['params'], **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipOptimWrapper(AdaptiveClipping, OptimWrapper):
    """:class:`mmengine.optim.OptimWrapper` with adaptive gradient clipping."""


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipAmpOptimWrapper(AdaptiveClipping, AmpOptimWrapper):
    """:class:`mmengine.optim.AmpOptimWrapper` with adaptive gradient clipping."""


@OPTIM_WRAPPERS.register_module()
class AdaptiveClipBfloat16OptimWrapper(AdaptiveClipping, Bfloat16OptimWrapper):
    """:class:`Bfloat16OptimWrapper` with adaptive gradient clipping."""
