"""Check that the parts of a model fit each other."""

import contextlib
import copy
import inspect
import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmevit.utils.configs import as_list, type_name
from mmevit.utils.errors import ConfigError

from .class_counts import default_of

# Height and width of the image; on the meta device they cost nothing.
SIDE = 512
# A model with one of these loads other weights when it is built.
LOADING_PARTS = ('language_model', 'text_encoder', 'tokenizer', 'teacher_config')
# For each type of layer the attribute with its number of input channels, and their dimension.
CHANNELS = (
    (nn.modules.conv._ConvNd, 'in_channels', 1),
    (nn.Linear, 'in_features', -1),
    (nn.modules.batchnorm._BatchNorm, 'num_features', 1),
    (nn.GroupNorm, 'num_channels', 1),
)


class ChannelMismatchError(Exception):
    """The input of a layer has an unexpected number of channels."""


class Part(NamedTuple):
    """A part of a model: its name in the config, the module and its config."""

    name: str
    module: Any
    cfg: dict

    @property
    def in_channels(self) -> int | list[int] | None:
        """``in_channels`` from the config or by default, None if there is none."""
        return self.cfg.get('in_channels', default_of(type(self.module), 'in_channels'))

    @property
    def stated(self) -> str:
        """``in_channels`` as a sentence."""
        return f'{self.name}.in_channels is {self.in_channels}'


class Maps(NamedTuple):
    """Feature maps, a single one, or None if unknown, and the part that returned them."""

    levels: Any
    source: str

    @property
    def widths(self) -> list[int]:
        """Numbers of channels."""
        levels = [self.levels] if isinstance(self.levels, Tensor) else self.levels
        return [level.shape[1] for level in levels]

    def has_other_number(self, values: Any) -> bool:
        """Whether there is a value for each map, but of another number of maps."""
        return isinstance(values, (list, tuple)) and len(values) != len(self.levels)

    def refuse(self, stated: str, returned: str = '') -> NoReturn:
        """Raise ConfigError: the config does not match the feature maps or their number."""
        returned = returned or f'{len(self.levels)} maps'
        raise ConfigError(f'{stated}, but {self.source} returns {returned}. Make them agree.')

    def refuse_channels(self, stated: str) -> NoReturn:
        """Raise ConfigError: the config does not match the channels of the feature maps."""
        self.refuse(stated, f'maps of {self.widths} channels')


def check_model(model: dict, scope: str | None = None) -> None:
    """Raise ConfigError if backbone or neck cannot be built, or a part does not fit its maps.

    The model is built on the meta device, in the ``default_scope`` of its config, and each part is
    given the output of the part before it. Models without EfficientViT are not checked.
    """
    backbone = model.get('backbone') or {}
    if type_name(backbone) != 'EfficientViT':
        return
    necks = as_list(model.get('neck') or [])
    necks = [('model.neck', neck) for neck in necks if type_name(neck) == 'EfficientViTFPN']
    for name, cfg in [('model.backbone', backbone), *necks]:
        try:
            with torch.device('meta'):
                MODELS.build({**cfg, 'type': type_name(cfg)})
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = ' '.join(str(error).split()) or 'its arguments contradict each other.'
            raise ConfigError(f'{name} cannot be built: {reason}') from error
    # Its warnings come again when the model is built for the run.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network = build_on_meta(model, scope)
        if network is not None:
            check_shapes(network, model)


def build_on_meta(model: dict, scope: str | None) -> Any:
    """Build a model on the meta device, None if that is not possible."""
    if any(part in model for part in LOADING_PARTS):
        return None
    # Losses, assigners and batch augmentations are not needed here.
    cfg = {**model, 'train_cfg': None, 'data_preprocessor': None}
    # Some constructors compute with values, which tensors on the meta device do not have.
    for device in ('meta', 'cpu'):
        # Other errors are reported when the model is built for the run.
        with contextlib.suppress(Exception), DefaultScope.overwrite_default_scope(scope):
            with torch.device(device):
                network = MODELS.build(copy.deepcopy(cfg))
            return revert_sync_batchnorm(network).to('meta').eval()
    return None


@torch.no_grad()
def check_shapes(network: Any, cfg: dict) -> None:
    """Run backbone, necks and heads on the meta device, raise ConfigError if one does not fit."""
    for name, layer in network.named_modules():
        for layer_type, attribute, dimension in CHANNELS:
            if isinstance(layer, layer_type):
                layer.register_forward_pre_hook(partial(check_channels, name, attribute, dimension))
    backbone = cfg['backbone']
    image = torch.empty(1, backbone.get('in_channels', 3), SIDE, SIDE, device='meta')
    maps = run(Part('model.backbone', network.backbone, backbone), Maps(image, 'the image'))
    maps = Maps(maps, f'model.backbone (arch={backbone.get("arch", "m4")!r})')
    for neck in find_parts(network, cfg, 'neck'):
        if maps.levels is not None:
            maps = Maps(run(neck, maps), neck.name)
    if maps.levels is None:
        return
    # In a transformer the heads are given the output of its decoder.
    if 'decoder' in cfg:
        check_transformer(network, maps)
        return
    for key in [key for key in cfg if key.endswith('head') and key != 'roi_head']:
        for head in find_parts(network, cfg, key):
            check_head(head, maps)
    if cfg.get('roi_head'):
        check_roi_head(network.roi_head, cfg['roi_head'], maps)


def check_channels(
    name: str, attribute: str, dimension: int, layer: nn.Module, args: tuple
) -> None:
    """Raise ChannelMismatchError, in a forward pre-hook of a layer."""
    expected = getattr(layer, attribute)
    if isinstance(args[0], Tensor) and args[0].shape[dimension] != expected:
        raise ChannelMismatchError(name, expected, tuple(args[0].shape))


def check_head(head: Part, maps: Maps) -> None:
    """Raise ConfigError if a head does not fit the maps, or their number."""
    inputs = inspect.signature(head.module.forward).parameters.values()
    sizes = ('img_shape', 'batch_input_shape', 'pad_shape', 'ori_shape')
    samples = [BaseDataElement(metainfo=dict.fromkeys(sizes, (SIDE, SIDE)))]
    needs_samples = sum(value.default is value.empty for value in inputs) > 1
    run(head, maps, *([samples] if needs_samples else []))
    strides: Any = getattr(head.module, 'strides', None)
    generator = getattr(head.module, 'prior_generator', None)
    if generator is not None and head.name.endswith(('bbox_head', 'rpn_head')):
        strides = generator.strides
        if maps.has_other_number(head.in_channels):
            maps.refuse_channels(head.stated)
    if maps.has_other_number(strides):
        maps.refuse(f'{head.name} has {len(strides)} strides')


def check_transformer(network: Any, maps: Maps) -> None:
    """Raise ConfigError if mmdet's DETR or a subclass does not fit the maps."""
    width = network.embed_dims
    num_levels = getattr(network, 'num_feature_levels', len(maps.levels))
    if len(maps.levels) != num_levels:
        maps.refuse(f'model.num_feature_levels is {num_levels}')
    if set(maps.widths) != {width}:
        maps.refuse_channels(f'model.encoder has embed_dims={width}')
    if network.bbox_head.embed_dims != width:
        raise ConfigError(
            f'model.bbox_head.embed_dims is {network.bbox_head.embed_dims}, but model.encoder has '
            f'embed_dims={width}. Make them agree.'
        )


def check_roi_head(network: Any, cfg: dict, maps: Maps) -> None:
    """Raise ConfigError if extractors or heads of an RoI head do not fit."""
    extractors = []
    for task in ('bbox', 'mask'):
        found = list(find_parts(network, cfg, f'{task}_roi_extractor', 'model.roi_head'))
        for extractor in found:
            check_extractor(extractor, maps)
        # A mask head may share the extractor of the box head.
        extractors = found or extractors
        heads = find_parts(network, cfg, f'{task}_head', 'model.roi_head')
        for head, extractor in zip(heads, itertools.cycle(extractors), strict=False):
            layer = extractor.module
            size = layer.roi_layers[0].output_size
            regions = torch.empty(1, layer.out_channels, *size, device='meta')
            if network.with_shared_head:
                regions = network.shared_head(regions)
            inputs = Maps(regions, extractor.name)
            if isinstance(head.in_channels, int) and [head.in_channels] != inputs.widths:
                inputs.refuse_channels(head.stated)
            run(head, inputs)


def check_extractor(extractor: Part, maps: Maps) -> None:
    """Raise ConfigError if an RoI extractor is for more maps or for other channels."""
    layer = extractor.module
    used = Maps(maps.levels[: layer.num_inputs], maps.source)
    if len(used.levels) < layer.num_inputs:
        maps.refuse(f'{extractor.name}.featmap_strides has {layer.num_inputs} values')
    # Maps of all levels are either taken one by one or concatenated.
    if {layer.out_channels} not in (set(used.widths), {sum(used.widths)}):
        used.refuse_channels(f'{extractor.name}.out_channels is {layer.out_channels}')


def run(part: Part, inputs: Maps, *others: Any) -> Any:
    """Run a part of a model on maps and other arguments, raise ConfigError if they do not fit.

    Returns None if it cannot run on the meta device or needs other arguments.
    """
    try:
        return part.module(inputs.levels, *others)
    except ChannelMismatchError as error:
        layer, expected, shape = error.args
        stated = part.in_channels
        widths = stated if isinstance(stated, (list, tuple)) else [stated]
        if expected in widths or expected == sum(width or 0 for width in widths):
            inputs.refuse_channels(part.stated)
        raise ConfigError(
            f'{part.name} expects {expected} channels in {layer}, but the output of '
            f'{inputs.source} becomes a tensor of shape {shape} there. Make them agree.'
        ) from error
    except (AssertionError, IndexError, ValueError):
        index = part.cfg.get('in_index')
        if index is not None and np.max(index) >= len(inputs.levels):
            inputs.refuse(f'{part.name}.in_index is {index}')
        if index is None and inputs.has_other_number(part.in_channels):
            inputs.refuse_channels(part.stated)
    # What the meta device does not support, such as operators of mmcv, or a missing argument.
    except Exception:
        pass
    return None


def find_parts(network: Any, cfg: dict, key: str, prefix: str = 'model') -> Iterator[Part]:
    """Yield a part of a model, or each in a list."""
    part, module = cfg.get(key), getattr(network, key, None)
    if not part or module is None:
        return
    if isinstance(part, (list, tuple)):
        for index, (entry, one) in enumerate(zip(part, module, strict=True)):
            yield Part(f'{prefix}.{key}[{index}]', one, entry)
    else:
        # The stages of a cascade may share their config.
        for one in module if isinstance(module, nn.ModuleList) else [module]:
            yield Part(f'{prefix}.{key}', one, part)
