"""Check that the parts of a model fit each other."""

import contextlib
import copy
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
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
    module: nn.Module
    cfg: dict

    @property
    def in_channels(self) -> int | list[int] | None:
        """``in_channels`` from the config or by default, None if there is none."""
        return self.cfg.get('in_channels', default_of(type(self.module), 'in_channels'))


class Maps(NamedTuple):
    """Feature maps, or a single one, and the name of the part that returned them."""

    levels: Sequence[Tensor] | Tensor
    source: str

    @property
    def widths(self) -> list[int]:
        """Numbers of channels."""
        levels = [self.levels] if isinstance(self.levels, Tensor) else self.levels
        return [level.shape[1] for level in levels]


def check_model(model: dict, scope: str | None = None) -> None:
    """Check an EfficientViT backbone, and that neck and heads fit its maps.

    The model is built on the meta device, and each part is given the output of the part before it.

    Args:
        model: Config of the model. One with another backbone is not checked.
        scope: The config's ``default_scope``.

    Raises:
        ConfigError: If the backbone or its neck cannot be built, or a part does not fit the maps
            that it is given.
    """
    backbone = model.get('backbone') or {}
    if type_name(backbone) != 'EfficientViT':
        return
    build_part(backbone, 'model.backbone')
    for neck in as_list(model.get('neck') or []):
        if type_name(neck) == 'EfficientViTFPN':
            build_part(neck, 'model.neck')
    # Its warnings come again when the model is built for the run.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network = build_on_meta(model, scope)
        if network is not None:
            check_shapes(network, model)


def build_part(cfg: dict, name: str) -> None:
    """Build a module on the meta device, raise ConfigError if that fails."""
    try:
        with torch.device('meta'):
            MODELS.build({**cfg, 'type': type_name(cfg)})
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split()) or 'its arguments contradict each other.'
        raise ConfigError(f'{name} cannot be built: {reason}') from error


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
    """Run backbone, necks and heads of a model on the meta device.

    Raises:
        ConfigError: If a part does not fit the maps that it is given.
    """
    for name, layer in network.named_modules():
        for layer_type, attribute, dimension in CHANNELS:
            if isinstance(layer, layer_type):
                layer.register_forward_pre_hook(channel_check(name, attribute, dimension))
    backbone = cfg['backbone']
    image = torch.empty(1, backbone.get('in_channels', 3), SIDE, SIDE, device='meta')
    maps = run(Part('model.backbone', network.backbone, backbone), Maps(image, 'the image'))
    source = f'model.backbone (arch={backbone.get("arch", "m4")!r})'
    for neck in find_parts(network, cfg, 'neck'):
        if maps is not None:
            maps, source = run(neck, Maps(maps, source)), neck.name
    if maps is None:
        return
    maps = Maps(maps, source)
    # In a transformer the heads are given the output of its decoder.
    if 'decoder' in cfg:
        check_transformer(network, maps)
        return
    for key in [key for key in cfg if key.endswith('head') and key != 'roi_head']:
        for head in find_parts(network, cfg, key):
            check_head(head, maps)
    if cfg.get('roi_head'):
        check_roi_head(network.roi_head, cfg['roi_head'], maps)


def check_head(head: Part, maps: Maps) -> None:
    """Raise ConfigError if a head does not fit the maps, or their number."""
    inputs = inspect.signature(head.module.forward).parameters.values()
    sizes = ('img_shape', 'batch_input_shape', 'pad_shape', 'ori_shape')
    samples = [BaseDataElement(metainfo=dict.fromkeys(sizes, (SIDE, SIDE)))]
    needs_samples = sum(value.default is value.empty for value in inputs) > 1
    run(head, maps, *([samples] if needs_samples else []))
    strides = getattr(head.module, 'strides', None)
    generator = getattr(head.module, 'prior_generator', None)
    if generator is not None and head.name.endswith(('bbox_head', 'rpn_head')):
        strides = generator.strides
        if isinstance(head.in_channels, (list, tuple)) and len(head.in_channels) != len(
            maps.levels
        ):
            raise_in_channels(head, maps)
    if isinstance(strides, (list, tuple)) and len(strides) != len(maps.levels):
        raise_mismatch(f'{head.name} has {len(strides)} strides', maps)


def check_transformer(network: Any, maps: Maps) -> None:
    """Raise ConfigError if mmdet's DETR or a subclass does not fit the maps."""
    width = network.embed_dims
    num_levels = getattr(network, 'num_feature_levels', len(maps.levels))
    if len(maps.levels) != num_levels:
        raise_mismatch(f'model.num_feature_levels is {num_levels}', maps)
    if set(maps.widths) != {width}:
        raise_channels(f'model.encoder has embed_dims={width}', maps)
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
            layer: Any = extractor.module
            size = layer.roi_layers[0].output_size
            regions = torch.empty(1, layer.out_channels, *size, device='meta')
            if network.with_shared_head:
                regions = network.shared_head(regions)
            inputs = Maps(regions, extractor.name)
            if isinstance(head.in_channels, int) and [head.in_channels] != inputs.widths:
                raise_in_channels(head, inputs)
            run(head, inputs)


def check_extractor(extractor: Part, maps: Maps) -> None:
    """Raise ConfigError if an RoI extractor is for more maps or for other channels."""
    layer: Any = extractor.module
    used = Maps(maps.levels[: layer.num_inputs], maps.source)
    if len(used.levels) < layer.num_inputs:
        stated = f'{extractor.name}.featmap_strides has {layer.num_inputs} values'
        raise_mismatch(stated, maps)
    # Maps of all levels are either taken one by one or concatenated.
    if {layer.out_channels} not in (set(used.widths), {sum(used.widths)}):
        raise_channels(f'{extractor.name}.out_channels is {layer.out_channels}', used)


def run(part: Part, inputs: Maps, *others: Any) -> Any:
    """Run a part of a model.

    Args:
        part: The part.
        inputs: Its first argument, the output of the part before it.
        *others: Its other arguments.

    Returns:
        Its output, None if it cannot run on the meta device or needs other arguments.

    Raises:
        ConfigError: If it does not fit its input.
    """
    try:
        return part.module(inputs.levels, *others)
    except ChannelMismatchError as error:
        layer, expected, shape = error.args
        stated = part.in_channels
        widths = stated if isinstance(stated, (list, tuple)) else [stated]
        if expected in widths or expected == sum(width or 0 for width in widths):
            raise_in_channels(part, inputs)
        raise ConfigError(
            f'{part.name} expects {expected} channels in {layer}, but the output of '
            f'{inputs.source} becomes a tensor of shape {shape} there. Make them agree.'
        ) from error
    except (AssertionError, IndexError, ValueError):
        num_maps = len(inputs.levels)
        if 'in_index' in part.cfg:
            if np.max(part.cfg['in_index']) >= num_maps:
                stated = f'{part.name}.in_index is {part.cfg["in_index"]}'
                raise_mismatch(stated, inputs)
        elif isinstance(part.in_channels, (list, tuple)) and len(part.in_channels) != num_maps:
            raise_in_channels(part, inputs)
    # What the meta device does not support, such as operators of mmcv, or a missing argument.
    except Exception:
        pass
    return None


def channel_check(name: str, attribute: str, dimension: int) -> Callable[[nn.Module, tuple], None]:
    """Make a forward pre-hook that raises ChannelMismatchError."""

    def check(layer: nn.Module, inputs: tuple) -> None:
        expected = getattr(layer, attribute)
        if isinstance(inputs[0], Tensor) and inputs[0].shape[dimension] != expected:
            raise ChannelMismatchError(name, expected, tuple(inputs[0].shape))

    return check


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


def raise_in_channels(part: Part, maps: Maps) -> NoReturn:
    """Raise ConfigError because ``in_channels`` of a part differs from the maps."""
    raise_channels(f'{part.name}.in_channels is {part.in_channels}', maps)


def raise_channels(stated: str, maps: Maps) -> NoReturn:
    """Raise ConfigError because the maps have other channels than stated."""
    raise_mismatch(stated, maps, f'maps of {maps.widths} channels')


def raise_mismatch(stated: str, maps: Maps, returned: str = '') -> NoReturn:
    """Raise ConfigError because a part does not fit the maps before it, by default their number."""
    returned = returned or f'{len(maps.levels)} maps'
    raise ConfigError(f'{stated}, but {maps.source} returns {returned}. Make them agree.')
