"""State dict keys of mmevit, of the authors' released files and of timm.

One table, built for the depths and heads of a state dict, serves every direction.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from mmevit.models.attention import relative_position_index
from mmevit.utils.errors import CheckpointError, list_problems, shorten

FORMATS = ('mmevit', 'released', 'timm')
FIRST_WEIGHT = dict(
    mmevit='stem.0.conv.weight',
    released='patch_embed.0.c.weight',
    timm='patch_embed.conv1.conv.weight',
)
# Prefixes that training code adds to keys: parallel and compiled models anywhere in a key,
# Lightning, averages and self-supervised models at its start.
WRAPPER = re.compile(r'(^|\.)(?:(?:module|_orig_mod)\.)+')
PREFIXES = {'model', 'encoder'}
# Matches the stage, block and head of the projection to queries, keys and values.
QKV = dict(
    mmevit=r'stages\.(\d)\.(\d+)\.attention\.branch\.attention\.qkvs\.(\d+)\.conv\.weight',
    released=r'blocks(\d)\.(\d+)\.mixer\.m\.attn\.qkvs\.(\d+)\.c\.weight',
    timm=r'stages\.(\d)\.blocks\.(\d+)\.mixer\.m\.attn\.qkvs\.(\d+)\.conv\.weight',
)
INDEX = 'attention_bias_idxs'
NORM = ('weight', 'bias', 'running_mean', 'running_var')


class Module(NamedTuple):
    """Names of a module in each format, and of its own weights, which are the same in all."""

    mmevit: str
    released: str
    timm: str
    tensors: tuple[str, ...]


def convert_names(state_dict: dict[str, Tensor], target: str) -> dict[str, Tensor]:
    """Rename the keys of a state dict. The tensors are not copied.

    Args:
        state_dict: Weights of a backbone, a classifier or a detector, in any of the formats.
        target: ``'mmevit'``, ``'released'`` or ``'timm'``. In mmevit's format, keys start with
            ``backbone.``, ``head.``, ``neck.`` and so on.

    Returns:
        The weights by their new keys.

    Raises:
        CheckpointError: If the format is not recognized, there are missing or unexpected keys, or
            timm has no such model.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> released = convert_names(EfficientViT('m0').state_dict(), 'released')
        >>> 'blocks3.4.mixer.m.attn.dws.0.c.weight' in released
        True
    """
    source = infer_format(state_dict)
    is_detector = any(name.startswith('neck.') for name in state_dict)
    if is_detector and 'timm' in (source, target):
        raise CheckpointError('timm has no detectors. Convert to mmevit or released.')
    backbone, rest = split_backbone(state_dict, source, is_detector)
    converted = convert_backbone(backbone, source, target)
    if target == 'mmevit' or is_detector:
        converted = {f'backbone.{name}': value for name, value in converted.items()}
    convert_rest = convert_detector if is_detector else convert_head
    return converted | convert_rest(rest, source, target)


def infer_format(state_dict: dict[str, Tensor]) -> str:
    """Infer the format of a state dict, one of ``FORMATS``.

    Raises:
        CheckpointError: If it is none of them.
    """
    for source, name in FIRST_WEIGHT.items():
        if name in state_dict or f'backbone.{name}' in state_dict:
            return source
    raise CheckpointError(
        f'Not weights of an EfficientViT: the first keys are {shorten(state_dict)}. One of '
        f'{", ".join(FIRST_WEIGHT.values())} is required.'
    )


def strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that training code adds to keys.

    Raises:
        CheckpointError: If the keys start with an unknown prefix.

    Example:
        >>> list(strip_wrappers({'module.model._orig_mod.backbone.stem.0.conv.weight': 1}))
        ['backbone.stem.0.conv.weight']
    """
    state_dict = {WRAPPER.sub(r'\1', name): value for name, value in state_dict.items()}
    firsts = '|'.join(re.escape(name) for name in FIRST_WEIGHT.values())
    matches = (re.fullmatch(rf'(.*?)(?:backbone\.)?(?:{firsts})', name) for name in state_dict)
    prefixes = {match[1] for match in matches if match}
    if not prefixes or '' in prefixes:
        return state_dict
    prefix = min(prefixes, key=len)
    if len(prefixes) > 1 or not PREFIXES.issuperset(prefix.split('.')[:-1]):
        raise CheckpointError(
            f'The keys of the weights start with {" or ".join(map(repr, sorted(prefixes)))}. Save '
            f'them without: {{name.removeprefix({prefix!r}): weight for name, weight in '
            f'weights.items() if name.startswith({prefix!r})}}.'
        )
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def split_backbone(
    state_dict: dict[str, Tensor], source: str, is_detector: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the backbone's weights, without prefix, and the rest."""
    has_prefix = is_detector or f'backbone.{FIRST_WEIGHT[source]}' in state_dict
    backbone, rest = {}, {}
    for name, value in state_dict.items():
        is_rest = not name.startswith('backbone.') if has_prefix else name.startswith('head')
        (rest if is_rest else backbone)[name if is_rest else name.removeprefix('backbone.')] = value
    return backbone, rest


def convert_backbone(weights: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename the keys of a backbone's weights, without prefix.

    Raises:
        CheckpointError: If there are missing or unexpected keys.
    """
    if source == target:
        return weights
    modules = list(list_modules(*find_layout(weights, source)))
    # The released files contain the index of each bias table too, which follows from its size.
    weights = {name: value for name, value in weights.items() if not name.endswith(INDEX)}
    check_names(weights, modules, source)
    names = {getattr(module, source): getattr(module, target) for module in modules}
    converted = {}
    for name, value in weights.items():
        module, _, tensor = name.rpartition('.')
        converted[f'{names[module]}.{tensor}'] = value
        if tensor == 'attention_biases' and target == 'released':
            index = relative_position_index(round(value.shape[1] ** 0.5))
            converted[f'{names[module]}.{INDEX}'] = index
    return converted


def find_layout(weights: Iterable[str], source: str) -> tuple[list[int], list[int]]:
    """Return the depth and the number of heads of each stage of a backbone, from its keys."""
    blocks: dict[int, set[int]] = {}
    heads: dict[int, int] = {}
    for name in weights:
        if match := re.fullmatch(QKV[source], name):
            stage, block, head = (int(number) for number in match.groups())
            blocks.setdefault(stage, set()).add(block)
            heads[stage] = max(heads.get(stage, 0), head + 1)
    return [len(blocks[stage]) for stage in sorted(blocks)], [heads[s] for s in sorted(heads)]


def check_names(weights: dict[str, Tensor], modules: Iterable[Module], source: str) -> None:
    """Check that a backbone's weights are exactly those of its modules.

    Raises:
        CheckpointError: If there are missing or unexpected keys.
    """
    expected = {f'{getattr(m, source)}.{tensor}' for m in modules for tensor in m.tensors}
    unexpected = [
        name for name in weights.keys() - expected if not name.endswith('num_batches_tracked')
    ]
    problems = {
        'missing keys': sorted(expected - weights.keys()),
        'unexpected keys': sorted(unexpected),
    }
    if found := list_problems(problems):
        raise CheckpointError(
            f'The weights, in {source} format, do not fit: {"; ".join(found)}. Use a complete file.'
        )


def list_modules(depths: Sequence[int], num_heads: Sequence[int]) -> Iterator[Module]:
    """Yield the convolutions, norm layers and bias tables of a backbone."""
    for index in range(4):
        yield from conv_norm(
            f'stem.{2 * index}', f'patch_embed.{2 * index}', f'patch_embed.conv{index + 1}'
        )
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        ours, released, timm = f'stages.{stage}', f'blocks{stage + 1}', f'stages.{stage}'
        skipped = (0, 0)
        if stage > 0:
            yield from list_subsample(f'{ours}.0', released, f'{timm}.downsample')
            skipped = (1, 3)
        for block in range(depth):
            yield from list_block(
                f'{ours}.{block + skipped[0]}',
                f'{released}.{block + skipped[1]}',
                f'{timm}.blocks.{block}',
                heads,
            )


def conv_norm(ours: str, released: str, timm: str) -> Iterator[Module]:
    """Yield the convolution and the norm layer of a pair."""
    yield Module(f'{ours}.conv', f'{released}.c', f'{timm}.conv', ('weight',))
    yield Module(f'{ours}.norm', f'{released}.bn', f'{timm}.bn', NORM)


def list_subsample(ours: str, released: str, timm: str) -> Iterator[Module]:
    """Yield the modules of the subsampling before a stage."""
    for index, position in enumerate((0, 2)):
        theirs = (f'{released}.{position}', f'{timm}.res{index + 1}')
        yield from conv_norm(f'{ours}.depthwise{index}', *(f'{name}.0.m' for name in theirs))
        yield from list_ffn(f'{ours}.ffn{index}.branch', *(f'{name}.1.m' for name in theirs))
    merge = (f'{released}.1', f'{timm}.patchmerge')
    for index, name in enumerate(('expand', 'downsample', 'reduce')):
        yield from conv_norm(f'{ours}.{name}', *(f'{theirs}.conv{index + 1}' for theirs in merge))
    for index, name in enumerate(('reduce', 'expand')):
        theirs = [f'{part}.se.fc{index + 1}' for part in merge]
        yield Module(f'{ours}.squeeze_excite.{name}', theirs[0], theirs[1], ('weight', 'bias'))


def list_ffn(ours: str, released: str, timm: str) -> Iterator[Module]:
    """Yield the modules of a feed-forward network."""
    for index, name in enumerate(('expand', 'reduce')):
        yield from conv_norm(f'{ours}.{name}', f'{released}.pw{index + 1}', f'{timm}.pw{index + 1}')


def list_block(ours: str, released: str, timm: str, num_heads: int) -> Iterator[Module]:
    """Yield the modules of a block."""
    for index in (0, 1):
        depthwise, ffn = f'dw{index}.m', f'ffn{index}.m'
        yield from conv_norm(
            f'{ours}.depthwise{index}', f'{released}.{depthwise}', f'{timm}.{depthwise}'
        )
        yield from list_ffn(f'{ours}.ffn{index}.branch', f'{released}.{ffn}', f'{timm}.{ffn}')
    ours += '.attention.branch.attention'
    theirs = [f'{name}.mixer.m.attn' for name in (released, timm)]
    yield Module(ours, theirs[0], theirs[1], ('attention_biases',))
    for head in range(num_heads):
        yield from conv_norm(f'{ours}.qkvs.{head}', *(f'{name}.qkvs.{head}' for name in theirs))
        yield from conv_norm(
            f'{ours}.query_convs.{head}', *(f'{name}.dws.{head}' for name in theirs)
        )
    yield from conv_norm(f'{ours}.proj', *(f'{name}.proj.1' for name in theirs))


HEAD = (
    Module('head.head.bn', 'head.bn', 'head.bn', NORM),
    Module('head.head.linear', 'head.l', 'head.linear', ('weight', 'bias')),
    Module('head.head_dist.bn', 'head_dist.bn', 'head_dist.bn', NORM),
    Module('head.head_dist.linear', 'head_dist.l', 'head_dist.linear', ('weight', 'bias')),
)


def convert_head(weights: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename the keys of a classifier's head.

    Raises:
        CheckpointError: If there are unexpected keys.
    """
    if source == target:
        return weights
    names = {getattr(module, source): getattr(module, target) for module in HEAD}
    unexpected = [name for name in weights if name.rpartition('.')[0] not in names]
    if unexpected:
        raise CheckpointError(
            f'The head has keys that {target} does not support: {shorten(unexpected)}.'
        )
    renamed = ((name.rpartition('.'), value) for name, value in weights.items())
    return {f'{names[module]}.{tensor}': value for (module, _, tensor), value in renamed}


def convert_detector(weights: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename the keys of a detector's neck; all others but the backbone's are mmdet's."""
    levels = {
        int(match[1])
        for name in weights
        if (match := re.search(r'^neck\..*(?:extra_trans_convs|upsamples)\.(\d+)\.', name))
    }
    names = {}
    for level in levels:
        # The released 3x3 convolutions are counted from the finest level up.
        finer = max(levels) - level
        for ours, released in (
            (f'neck.fpn_convs.0.upsamples.{level}.', f'neck.extra_trans_convs.{level}.'),
            (f'neck.fpn_convs.0.finer_convs.{level}.', f'neck.extra_fpn_convs.{finer}.'),
        ):
            prefixes = dict(mmevit=ours, released=released)
            names[prefixes[source]] = prefixes[target]
    converted = {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), '')
        converted[names.get(prefix, '') + name.removeprefix(prefix)] = value
    return converted
