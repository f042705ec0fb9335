"""Layer-wise learning-rate decay for models of any OpenMMLab library."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmevit.utils.errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with layer-wise learning-rate decay.

    The learning rate of each layer is ``layer_decay_rate`` times that of the next one; neck and
    head have the full one. mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` is
    equivalent, but only for classifiers and without ``lr_mult``::

        optim_wrapper = dict(
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(
                layer_decay_rate=0.8,
                norm_decay_mult=0.0,
                bias_decay_mult=0.0,
                custom_keys=dict(attention_biases=dict(decay_mult=0.0)),
            ),
        )

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: ``layer_decay_rate``, above 0 and at most 1, and all settings of
            :class:`mmengine.optim.DefaultOptimWrapperConstructor`.

    Raises:
        ConfigError: If the rate is missing or out of range, the optimizer's ``lr`` is missing, or
            the model's backbone has no ``get_layer_depth()``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg.layer_decay_rate is {rate}. '
                f'{type(self).__name__} requires one above 0 and at most 1.'
            )
        if self.base_lr is None:
            raise ConfigError(
                f'optim_wrapper.optimizer has no lr. {type(self).__name__} requires one.'
            )

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Add a parameter group for each parameter of a module; scale those of the whole model."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            self._scale_rates(params, module)

    def _scale_rates(self, params: list[dict], model: nn.Module) -> None:
        backbone: Any = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ConfigError(
                f'The backbone of {type(model).__name__} is {type(backbone).__name__}, without '
                f'get_layer_depth(). {type(self).__name__} requires one with it, such as '
                'EfficientViT.'
            )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            layer, num_layers = backbone.get_layer_depth(names[id(parameter)], 'backbone.')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - layer)
            group['lr'] = group.get('lr', self.base_lr) * scale
