"""State dict keys of mmevit, of the authors' released files and of timm.

One table, expanded for the depths and heads of a state dict, serves every direction.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import product

from torch import Tensor

from mmevit.models.attention import relative_position_index
from mmevit.utils.errors import CheckpointError, list_problems, shorten

FIRST_WEIGHT = dict(
    mmevit='stem.0.conv.weight',
    released='patch_embed.0.c.weight',
    timm='patch_embed.conv1.conv.weight',
)
FORMATS = tuple(FIRST_WEIGHT)
# Prefixes that training code adds to keys: parallel and compiled models anywhere in a key,
# Lightning, averages and self-supervised models at its start.
WRAPPER = re.compile(r'(^|\.)(?:(?:module|_orig_mod)\.)+')
PREFIXES = {'model', 'encoder'}
# Matches the stage, block and head of the projection to queries, keys and values in any format.
QKV = re.compile(r'\D+(\d)\.\D*(\d+)\.\D+\.qkvs\.(\d+)\.c(?:onv)?\.weight')
INDEX = 'attention_bias_idxs'

# The name of a module or of its own weight, in each of FORMATS.
Names = tuple[str, str, str]
NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
CONV_NORM: list[Names] = [
    ('conv.weight', 'c.weight', 'conv.weight'),
    *((f'norm.{tensor}', f'bn.{tensor}', f'bn.{tensor}') for tensor in NORM),
]
SUBSAMPLE: list[Names] = [
    ('depthwise0', '0.0.m', 'res1.0.m'),
    ('ffn0.branch.expand', '0.1.m.pw1', 'res1.1.m.pw1'),
    ('ffn0.branch.reduce', '0.1.m.pw2', 'res1.1.m.pw2'),
    ('expand', '1.conv1', 'patchmerge.conv1'),
    ('downsample', '1.conv2', 'patchmerge.conv2'),
    ('reduce', '1.conv3', 'patchmerge.conv3'),
    ('squeeze_excite.reduce', '1.se.fc1', 'patchmerge.se.fc1'),
    ('squeeze_excite.expand', '1.se.fc2', 'patchmerge.se.fc2'),
    ('depthwise1', '2.0.m', 'res2.0.m'),
    ('ffn1.branch.expand', '2.1.m.pw1', 'res2.1.m.pw1'),
    ('ffn1.branch.reduce', '2.1.m.pw2', 'res2.1.m.pw2'),
]
# For each attention head `{}`. Names inside a block are the same in the last two formats.
BLOCK = {
    'depthwise0': 'dw0.m',
    'ffn0.branch.expand': 'ffn0.m.pw1',
    'ffn0.branch.reduce': 'ffn0.m.pw2',
    'attention.branch.attention': 'mixer.m.attn',
    'attention.branch.attention.qkvs.{}': 'mixer.m.attn.qkvs.{}',
    'attention.branch.attention.query_convs.{}': 'mixer.m.attn.dws.{}',
    'attention.branch.attention.proj': 'mixer.m.attn.proj.1',
    'depthwise1': 'dw1.m',
    'ffn1.branch.expand': 'ffn1.m.pw1',
    'ffn1.branch.reduce': 'ffn1.m.pw2',
}
CLASSIFIER_HEAD: list[Names] = [
    ('head.head.bn.', 'head.bn.', 'head.bn.'),
    ('head.head.linear.', 'head.l.', 'head.linear.'),
    ('head.head_dist.bn.', 'head_dist.bn.', 'head_dist.bn.'),
    ('head.head_dist.linear.', 'head_dist.l.', 'head_dist.linear.'),
]


def convert_names(state_dict: dict[str, Tensor], target: str) -> dict[str, Tensor]:
    """Rename the keys of a state dict. The tensors are not copied.

    Args:
        state_dict: Weights of a backbone, a classifier or a detector, in any of the formats.
        target: ``'mmevit'``, ``'released'`` or ``'timm'``. In mmevit's format, keys start with
            ``backbone.``, ``head.``, ``neck.`` and so on.

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
    has_prefix = is_detector or f'backbone.{FIRST_WEIGHT[source]}' in state_dict
    backbone, rest = {}, {}
    for name, value in state_dict.items():
        if name.startswith('backbone.') if has_prefix else not name.startswith('head'):
            backbone[name.removeprefix('backbone.')] = value
        else:
            rest[name] = value
    prefix = 'backbone.' if target == 'mmevit' or is_detector else ''
    converted = convert_backbone(backbone, source, target)
    return {
        **{f'{prefix}{name}': value for name, value in converted.items()},
        **convert_rest(rest, source, target, is_detector),
    }


def infer_format(state_dict: dict[str, Tensor]) -> str:
    """Return which of ``FORMATS`` a state dict has, or raise CheckpointError."""
    for source, name in FIRST_WEIGHT.items():
        if name in state_dict or f'backbone.{name}' in state_dict:
            return source
    raise CheckpointError(
        f'Not weights of an EfficientViT: the first keys are {shorten(state_dict)}. One of '
        f'{", ".join(FIRST_WEIGHT.values())} is required.'
    )


def strip_wrappers(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that training code adds to keys; raise CheckpointError for unknown ones.

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


def convert_backbone(weights: dict[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """Rename the keys of a backbone's weights, without prefix."""
    if source == target:
        return weights
    names = match_keys(weights, source, target)
    # The released files contain the index of each bias table too, which follows from its size.
    weights = {name: value for name, value in weights.items() if not name.endswith(INDEX)}
    missing = names.keys() - weights.keys()
    problems = {
        'missing keys': sorted(n for n in missing if not n.endswith('num_batches_tracked')),
        'unexpected keys': sorted(weights.keys() - names.keys()),
    }
    if found := list_problems(problems):
        raise CheckpointError(
            f'The weights, in {source} format, do not fit: {"; ".join(found)}. Use a complete file.'
        )
    converted = {}
    for name, value in weights.items():
        converted[names[name]] = value
        if target == 'released' and name.endswith('attention_biases'):
            index = relative_position_index(round(value.shape[1] ** 0.5))
            converted[names[name].replace('attention_biases', INDEX)] = index
    return converted


def match_keys(weights: Iterable[str], source: str, target: str) -> dict[str, str]:
    """Map all keys of a backbone with the depths and heads of ``weights`` to another format."""
    columns = FORMATS.index(source), FORMATS.index(target)
    keys = {}
    for module in list_modules(weights):
        tensors = CONV_NORM
        if module[0].endswith('.attention'):
            tensors = [('attention_biases',) * 3]
        elif 'squeeze_excite' in module[0]:
            tensors = [('weight',) * 3, ('bias',) * 3]
        for tensor in tensors:
            given, wanted = (f'{module[column]}.{tensor[column]}' for column in columns)
            keys[given] = wanted
    return keys


def list_modules(weights: Iterable[str]) -> Iterator[Names]:
    """Yield the convolutions with norm layers and the bias tables of a backbone."""
    for index in range(4):
        yield f'stem.{2 * index}', f'patch_embed.{2 * index}', f'patch_embed.conv{index + 1}'
    found = [tuple(map(int, match.groups())) for match in map(QKV.fullmatch, weights) if match]
    for stage, number in enumerate(sorted({number for number, _, _ in found})):
        depth = len({block for n, block, _ in found if n == number})
        num_heads = 1 + max(head for n, _, head in found if n == number)
        is_subsampled = stage > 0
        for ours, released, timm in SUBSAMPLE if is_subsampled else ():
            yield (
                f'stages.{stage}.0.{ours}',
                f'blocks{stage + 1}.{released}',
                f'stages.{stage}.downsample.{timm}',
            )
        for block, (ours, theirs), head in product(range(depth), BLOCK.items(), range(num_heads)):
            ours, theirs = ours.format(head), theirs.format(head)
            yield (
                f'stages.{stage}.{block + is_subsampled}.{ours}',
                f'blocks{stage + 1}.{block + 3 * is_subsampled}.{theirs}',
                f'stages.{stage}.blocks.{block}.{theirs}',
            )


def convert_rest(
    weights: dict[str, Tensor], source: str, target: str, is_detector: bool
) -> dict[str, Tensor]:
    """Rename the keys of a classifier's head, or of a detector's neck; others are mmdet's."""
    modules = list_neck(weights) if is_detector else CLASSIFIER_HEAD
    names = {module[FORMATS.index(source)]: module[FORMATS.index(target)] for module in modules}
    unexpected = [name for name in weights if not name.startswith(tuple(names))]
    if unexpected and not is_detector and source != target:
        raise CheckpointError(
            f'The head has keys that {target} does not support: {shorten(unexpected)}.'
        )
    converted = {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), '')
        converted[names.get(prefix, '') + name.removeprefix(prefix)] = value
    return converted


def list_neck(weights: Iterable[str]) -> Iterator[Names]:
    """Yield the layers of a detector's neck that are not mmdet's."""
    pattern = re.compile(r'neck\..*(?:extra_trans_convs|upsamples)\.(\d+)\.')
    levels = {int(match[1]) for match in map(pattern.match, weights) if match}
    for level in levels:
        yield f'neck.fpn_convs.0.upsamples.{level}.', f'neck.extra_trans_convs.{level}.', ''
        # The released 3x3 convolutions are counted from the finest level up.
        finer = max(levels) - level
        yield f'neck.fpn_convs.0.finer_convs.{level}.', f'neck.extra_fpn_convs.{finer}.', ''
