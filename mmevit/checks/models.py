"""Check that the parts of a model fit each other and the images."""

import contextlib
import copy
import inspect
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmevit.utils.configs import as_list, type_name
from mmevit.utils.errors import ConfigError

from .class_counts import default_of

# How mmdet and mmsegmentation write what the released weights were trained on.
IMAGENET_PIXELS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# Height and width of the image whose maps are followed; on the meta device they cost nothing.
SIDE = 512
# A model with one of these loads other weights where it is built.
LOADING_MODELS = ('language_model', 'text_encoder', 'tokenizer', 'teacher_config')
ANCHORED = ('bbox_head', 'rpn_head')
# By the kind of a layer: the attribute that has the number of channels, and their dimension.
CHANNELS = (
    (nn.modules.conv._ConvNd, 'in_channels', 1),
    (nn.Linear, 'in_features', -1),
    (nn.modules.batchnorm._BatchNorm, 'num_features', 1),
    (nn.GroupNorm, 'num_channels', 1),
)


class OtherChannelsError(Exception):
    """A layer was built for another number of channels than it is given."""


def check_model(model: dict, scope: str | None = None) -> None:
    """Check the arguments of an EfficientViT backbone, and that neck and heads fit its maps.

    The model is built on the meta device, and each part is given what the one before it returns.

    Args:
        model: Config of the model. One with another backbone is left alone.
        scope: The config's ``default_scope``.

    Raises:
        ConfigError: If the backbone or its neck cannot be built, or a part takes other maps than
            it is given.
    """
    backbone = model.get('backbone') or {}
    if type_name(backbone) != 'EfficientViT':
        return
    build_without_memory(backbone, 'model.backbone')
    for neck in as_list(model.get('neck') or []):
        if type_name(neck) == 'EfficientViTFPN':
            build_without_memory(neck, 'model.neck')
    # Its warnings come again when the model is built to be run.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network = build_whole_without_memory(model, scope)
        if network is not None:
            follow_maps(network, model)


def build_without_memory(cfg: dict, name: str) -> nn.Module:
    """Build one of mmevit's modules on the meta device, raise ConfigError if that fails."""
    try:
        with torch.device('meta'):
            return MODELS.build({**cfg, 'type': type_name(cfg)})
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split()) or 'its arguments contradict each other.'
        raise ConfigError(f'{name} cannot be built: {reason}') from error


def build_whole_without_memory(model: dict, scope: str | None) -> nn.Module | None:
    """Build a model for the meta device; None if it loads weights, or cannot be built at all."""
    if any(part in model for part in LOADING_MODELS):
        return None
    # Losses, assigners and what mixes images are of no use here.
    cfg = {**model, 'train_cfg': None, 'data_preprocessor': None}
    # Some constructors compute with values, which tensors on the meta device do not have.
    for device in ('meta', 'cpu'):
        # What is wrong with it is reported when it is built to be run.
        with contextlib.suppress(Exception), DefaultScope.overwrite_default_scope(scope):
            with torch.device(device):
                network = MODELS.build(copy.deepcopy(cfg))
            return revert_sync_batchnorm(network).to('meta').eval()
    return None


@torch.no_grad()
def follow_maps(network: nn.Module, cfg: dict) -> None:
    """Give each part of a model on the meta device what the part before it returns.

    Raises:
        ConfigError: If a part takes other maps than it is given.
    """
    for name, layer in network.named_modules():
        for kind, attribute, dimension in CHANNELS:
            if isinstance(layer, kind):
                layer.register_forward_pre_hook(make_watch(name, attribute, dimension))
    backbone = cfg['backbone']
    images = torch.empty(1, backbone.get('in_channels', 3), SIDE, SIDE, device='meta')
    source = f'model.backbone (arch={backbone.get("arch", "m4")!r})'
    maps = give(network.backbone, [images], 'model.backbone', backbone, 'the image')
    for name, neck, part in find_parts(network, cfg, 'neck'):
        if maps is not None:
            maps, source = give(neck, [maps], name, part, source), name
    if maps is None:
        return

    # In a transformer the heads are given what its decoder returns.
    if 'decoder' in cfg:
        check_transformer(network, maps, source)
        return
    sizes = ('img_shape', 'batch_input_shape', 'pad_shape', 'ori_shape')
    samples = [BaseDataElement(metainfo=dict.fromkeys(sizes, (SIDE, SIDE)))]
    for key in [key for key in cfg if key.endswith('head') and key != 'roi_head']:
        for name, head, part in find_parts(network, cfg, key):
            inputs = inspect.signature(head.forward).parameters.values()
            has_samples = sum(value.default is value.empty for value in inputs) > 1
            give(head, [maps, samples] if has_samples else [maps], name, part, source)
            check_levels(name, head, part, maps, source)
    if cfg.get('roi_head'):
        follow_regions(network.roi_head, cfg['roi_head'], maps, source)


def check_transformer(network: nn.Module, maps: Sequence[Tensor], source: str) -> None:
    """Raise ConfigError if mmdet's DETR, or one made from it, is given other maps than it takes."""
    width, num_levels = network.embed_dims, getattr(network, 'num_feature_levels', len(maps))
    widths = [level.shape[1] for level in maps]
    if len(maps) != num_levels:
        raise ConfigError(
            f'model.num_feature_levels is {num_levels}, but {source} gives {len(maps)} maps. Make '
            'them agree.'
        )
    if set(widths) != {width}:
        raise ConfigError(
            f'model.encoder has embed_dims={width}, but {source} gives maps of {widths} channels. '
            'Make them agree.'
        )
    if network.bbox_head.embed_dims != width:
        raise ConfigError(
            f'model.bbox_head.embed_dims is {network.bbox_head.embed_dims}, but model.encoder has '
            f'embed_dims={width}. Make them agree.'
        )


def follow_regions(network: nn.Module, cfg: dict, maps: Sequence[Tensor], source: str) -> None:
    """Give the heads for regions what is cut out of the maps; raise ConfigError if they differ."""
    extractors = []
    for kind in ('bbox', 'mask'):
        found = list(find_parts(network, cfg, f'{kind}_roi_extractor', 'model.roi_head'))
        # A head for masks may share the extractor of that for boxes.
        extractors = found or extractors
        for name, extractor, _ in found:
            levels = maps[: extractor.num_inputs]
            widths = [level.shape[1] for level in levels]
            if len(levels) < extractor.num_inputs:
                raise ConfigError(
                    f'{name}.featmap_strides has {extractor.num_inputs} values, but {source} gives '
                    f'{len(maps)} maps. Make them agree.'
                )
            if {extractor.out_channels} not in (set(widths), {sum(widths)}):
                raise ConfigError(
                    f'{name}.out_channels is {extractor.out_channels}, but {source} gives maps of '
                    f'{widths} channels. Make them agree.'
                )
        heads = find_parts(network, cfg, f'{kind}_head', 'model.roi_head')
        for (name, head, part), (origin, extractor, _) in zip(
            heads, itertools.cycle(extractors), strict=False
        ):
            size = extractor.roi_layers[0].output_size
            regions = torch.empty(1, extractor.out_channels, *size, device='meta')
            if network.with_shared_head:
                regions = network.shared_head(regions)
            declared = in_channels_of(head, part)
            if isinstance(declared, int) and declared != regions.shape[1]:
                raise ConfigError(misfit(name, declared, origin, [regions]))
            give(head, [regions], name, part, origin)


def give(module: nn.Module, inputs: list, name: str, cfg: dict, source: str) -> Any:
    """Run a part of a model.

    Args:
        module: The part.
        inputs: Its arguments, of which the first is what the part before it returned.
        name: Its name in the config.
        cfg: Its config.
        source: Name of the part before it.

    Returns:
        What the part returns, None if it cannot run on the meta device or without other arguments.

    Raises:
        ConfigError: If it takes other maps than it is given.
    """
    try:
        return module(*inputs)
    except OtherChannelsError as error:
        layer, expected, shape = error.args
        declared = in_channels_of(module, cfg)
        widths = declared if isinstance(declared, (list, tuple)) else [declared]
        if expected in widths or expected == sum(width or 0 for width in widths):
            raise ConfigError(misfit(name, declared, source, inputs[0])) from error
        raise ConfigError(
            f'{name}, in {layer}, takes {expected} channels, but {source} leads to a tensor of '
            f'shape {shape}. Make them agree.'
        ) from error
    except (AssertionError, IndexError, ValueError) as error:
        declared, num_maps = in_channels_of(module, cfg), len(inputs[0])
        if 'in_index' in cfg:
            if np.max(cfg['in_index']) >= num_maps:
                raise ConfigError(
                    f'{name}.in_index is {cfg["in_index"]}, but {source} gives {num_maps} maps. '
                    'Make them agree.'
                ) from error
        elif isinstance(declared, (list, tuple)) and len(declared) != num_maps:
            raise ConfigError(misfit(name, declared, source, inputs[0])) from error
    # What the meta device lacks, such as operators of mmcv, or another argument.
    except Exception:
        pass
    return None


def make_watch(name: str, attribute: str, dimension: int) -> Callable[[nn.Module, tuple], None]:
    """Make a forward pre-hook that raises OtherChannelsError at other channels than expected."""

    def watch(layer: nn.Module, inputs: tuple) -> None:
        expected = getattr(layer, attribute)
        if isinstance(inputs[0], Tensor) and inputs[0].shape[dimension] != expected:
            raise OtherChannelsError(name, expected, tuple(inputs[0].shape))

    return watch


def find_parts(
    network: nn.Module, cfg: dict, key: str, prefix: str = 'model'
) -> Iterator[tuple[str, nn.Module, dict]]:
    """Yield the name, the module and the config of a part of a model, or of each in a list."""
    part, module = cfg.get(key), getattr(network, key, None)
    if not part or module is None:
        return
    if isinstance(part, (list, tuple)):
        for index, (entry, one) in enumerate(zip(part, module, strict=True)):
            yield f'{prefix}.{key}[{index}]', one, entry
    else:
        # The stages of a cascade may be alike.
        for one in module if isinstance(module, nn.ModuleList) else [module]:
            yield f'{prefix}.{key}', one, part


def in_channels_of(module: nn.Module, cfg: dict) -> int | list[int] | None:
    """Tell the ``in_channels`` of a part, from its config or by default; None if it has none."""
    return cfg.get('in_channels', default_of(type(module), 'in_channels'))


def misfit(name: str, declared: int | list[int], source: str, maps: Sequence[Tensor]) -> str:
    """Say that the maps have other channels than declared."""
    return (
        f'{name}.in_channels is {declared}, but {source} gives maps of '
        f'{[level.shape[1] for level in maps]} channels. Make them agree.'
    )


def check_levels(
    name: str, head: nn.Module, cfg: dict, maps: Sequence[Tensor], source: str
) -> None:
    """Raise ConfigError if a detection head is made for more or fewer maps than there are."""
    strides, declared = getattr(head, 'strides', None), in_channels_of(head, cfg)
    if name.endswith(ANCHORED) and hasattr(head, 'prior_generator'):
        strides = head.prior_generator.strides
        if isinstance(declared, (list, tuple)) and len(declared) != len(maps):
            raise ConfigError(misfit(name, declared, source, maps))
    if isinstance(strides, (list, tuple)) and len(strides) != len(maps):
        raise ConfigError(
            f'{name} is made for maps of {len(strides)} strides, but {source} gives {len(maps)} '
            'maps. Make them agree.'
        )


def check_pixels(cfg: Config) -> None:
    """Raise ConfigError if images are not normalised with a value for each channel, or with one."""
    backbone = cfg.model.get('backbone') or {}
    name = 'model.data_preprocessor' if cfg.model.get('data_preprocessor') else 'data_preprocessor'
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    in_channels = backbone.get('in_channels', 3)
    if type_name(backbone) != 'EfficientViT':
        return
    for key in ('mean', 'std'):
        values = preprocessor.get(key)
        if isinstance(values, (list, tuple)) and len(values) not in (1, in_channels):
            raise ConfigError(
                f'{name}.{key} has {len(values)} values, but model.backbone.in_channels is '
                f'{in_channels}. Give one value for each channel.'
            )


def warn_of_random_statistics(cfg):
    """Warn where batch norm is frozen, but nothing is loaded that would have trained it.

    Args:
        cfg (Config): The config.
    """
    backbone = cfg.model.get('backbone') or {}
    is_loaded = any(cfg.get(key) for key in ('load_from', 'resume')) or any(
        part.get('init_cfg') for part in (cfg.model, backbone)
    )
    if type_name(backbone) == 'EfficientViT' and backbone.get('norm_eval') and not is_loaded:
        print_log(
            'model.backbone.norm_eval freezes batch norm, but the backbone starts from random '
            'weights: name trained ones in model.backbone.init_cfg, or set norm_eval=False.',
            logger='current',
            level=logging.WARNING,
        )


def warn_of_other_pixels(cfg):
    """Warn where trained weights would see other pixels than those that they were trained on.

    Args:
        cfg (Config): The config; stock ones of FCOS, SSD, YOLOX and RTMDet are such.
    """
    backbone, preprocessor = (
        cfg.model.get(name) or {} for name in ('backbone', 'data_preprocessor')
    )
    is_loaded = type_name(backbone) == 'EfficientViT' and backbone.get('init_cfg')
    if backbone.get('in_channels', 3) != 3:  # the released weights are for RGB
        return
    given = {name: preprocessor.get(name) for name in IMAGENET_PIXELS}
    if is_loaded and preprocessor and given != IMAGENET_PIXELS:
        print_log(
            f'The weights in model.backbone.init_cfg are for {IMAGENET_PIXELS}, but '
            f'model.data_preprocessor has {given}: write those there if they are of ImageNet.',
            logger='current',
            level=logging.WARNING,
        )
