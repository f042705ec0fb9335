"""Layer-wise learning rate decay for the models of any OpenMMLab library."""

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from mmevit.utils.errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with learning rates that shrink from the head down to the stem.

    The rate of each layer is ``layer_decay_rate`` times that of the next one; neck and head have
    the full one. mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` gives the same, but for
    classifiers alone, and knows no ``lr_mult``::

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
        optim_wrapper_cfg (dict): Config of the optimizer wrapper.
        paramwise_cfg (dict): ``layer_decay_rate``, above 0 and at most 1, beside all that
            :class:`mmengine.optim.DefaultOptimWrapperConstructor` takes.

    Raises:
        ConfigError: If the rate is missing or out of range, the optimizer's ``lr`` is missing, or
            the model's backbone has no ``get_layer_depth()``.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg.layer_decay_rate is {rate}, but '
                f'{type(self).__name__} needs one above 0 and at most 1.'
            )
        if self.base_lr is None:
            raise ConfigError(
                f'optim_wrapper.optimizer has no lr, which {type(self).__name__} scales: give one.'
            )

    def add_params(self, params, module, prefix='', **kwargs):
        """Add the parameters of a module, and of those in it, each with its rates.

        Args:
            params (list[dict]): Parameter groups, which is added to.
            module (nn.Module): The module.
            prefix (str): What the names of its parameters start with; none for the model.
            **kwargs: Handed on.
        """
        super().add_params(params, module, prefix=prefix, **kwargs)
        if not prefix:
            self._scale_rates(params, module)

    def _scale_rates(self, params, model):
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ConfigError(
                f'{type(self).__name__} needs a model whose backbone has get_layer_depth(), such '
                f'as EfficientViT, but {type(model).__name__} has {type(backbone).__name__}.'
            )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            layer, num_layers = backbone.get_layer_depth(names[id(parameter)], 'backbone.')
            scale = self.paramwise_cfg['layer_decay_rate'] ** (num_layers - 1 - layer)
            group['lr'] = group.get('lr', self.base_lr) * scale
