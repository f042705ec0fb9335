"""The names of the weights in mmevit, in the authors' released files and in timm.

One table, made for the depths and heads that a state dict has, serves every direction.
"""

import re
from typing import NamedTuple

from mmevit.models.attention import relative_index
from mmevit.utils.errors import CheckpointError, list_problems, shorten

FORMS = ('mmevit', 'released', 'timm')
FIRST_WEIGHT = dict(
    mmevit='stem.0.conv.weight',
    released='patch_embed.0.c.weight',
    timm='patch_embed.conv1.conv.weight',
)
# What training code puts before the names: parallel and compiled models do so anywhere in a name,
# Lightning, averages and self-supervised models at its start.
WRAPPER = re.compile(r'(^|\.)(?:(?:module|_orig_mod)\.)+')
PREFIXES = {'model', 'encoder'}
# Stage, block and head of the projection to queries, keys and values.
QKV = dict(
    mmevit=r'stages\.(\d)\.(\d+)\.attention\.branch\.attention\.qkvs\.(\d+)\.conv\.weight',
    released=r'blocks(\d)\.(\d+)\.mixer\.m\.attn\.qkvs\.(\d+)\.c\.weight',
    timm=r'stages\.(\d)\.blocks\.(\d+)\.mixer\.m\.attn\.qkvs\.(\d+)\.conv\.weight',
)
INDEX = 'attention_bias_idxs'
NORM = ('weight', 'bias', 'running_mean', 'running_var')


class Module(NamedTuple):
    """A module with weights of its own.

    Args:
        mmevit (str): Its name in mmevit.
        released (str): Its name in the released files.
        timm (str): Its name in timm.
        tensors (tuple[str]): Names of its weights, which are the same everywhere.
    """

    mmevit: str
    released: str
    timm: str
    tensors: tuple


def convert_names(state_dict, target):
    """Spell the names of a state dict in another form; the tensors stay as they are.

    Args:
        state_dict (dict[str, Tensor]): Weights of a backbone, a classifier or a detector, in any
            of the forms.
        target (str): ``'mmevit'``, ``'released'`` or ``'timm'``. In mmevit's, names start with
            ``backbone.``, ``head.``, ``neck.`` and so on.

    Returns:
        dict[str, Tensor]: The weights under their new names.

    Raises:
        CheckpointError: If the form is not recognised, a name is missing or surplus, or timm has no
            such model.

    Example:
        >>> from mmevit.models import EfficientViT
        >>> released = convert_names(EfficientViT('m0').state_dict(), 'released')
        >>> 'blocks3.4.mixer.m.attn.dws.0.c.weight' in released
        True
    """
    source = find_form(state_dict)
    is_detector = any(name.startswith('neck.') for name in state_dict)
    if is_detector and 'timm' in (source, target):
        raise CheckpointError('timm has no detectors: convert them to mmevit or released.')
    backbone, rest = split_backbone(state_dict, source, is_detector)
    converted = convert_backbone(backbone, source, target)
    if target == 'mmevit' or is_detector:
        converted = {f'backbone.{name}': value for name, value in converted.items()}
    convert_rest = convert_detector if is_detector else convert_head
    return converted | convert_rest(rest, source, target)


def find_form(state_dict):
    """Recognise the form of a state dict.

    Args:
        state_dict (dict[str, Tensor]): The weights.

    Returns:
        str: One of ``FORMS``.

    Raises:
        CheckpointError: If it is none.
    """
    for form, name in FIRST_WEIGHT.items():
        if name in state_dict or f'backbone.{name}' in state_dict:
            return form
    raise CheckpointError(
        f'These are no weights of an EfficientViT: the first names are {shorten(state_dict)}, but '
        f'{", ".join(FIRST_WEIGHT.values())} are what tells its forms.'
    )


def strip_wrappers(state_dict: dict) -> dict:
    """Remove what training code puts before the names of weights.

    Raises:
        CheckpointError: If the names start with a prefix that is not known.

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
            f'The names of the weights start with {" or ".join(map(repr, sorted(prefixes)))}. Save '
            f'them without: {{name.removeprefix({prefix!r}): weight for name, weight in '
            f'weights.items() if name.startswith({prefix!r})}}.'
        )
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def split_backbone(state_dict, source, is_detector):
    """Split a state dict into the backbone's weights, without prefix, and the rest."""
    has_prefix = is_detector or f'backbone.{FIRST_WEIGHT[source]}' in state_dict
    backbone, rest = {}, {}
    for name, value in state_dict.items():
        is_rest = not name.startswith('backbone.') if has_prefix else name.startswith('head')
        (rest if is_rest else backbone)[name if is_rest else name.removeprefix('backbone.')] = value
    return backbone, rest


def convert_backbone(weights, source, target):
    """Spell the names of a backbone's weights in another form.

    Args:
        weights (dict[str, Tensor]): The weights, without prefix.
        source (str): Their form.
        target (str): The form to give them.

    Returns:
        dict[str, Tensor]: The weights, without prefix.

    Raises:
        CheckpointError: If a name is missing or surplus.
    """
    if source == target:
        return weights
    modules = list(list_modules(*find_layout(weights, source)))
    # The released files keep the index of the bias tables too, which follows from their size.
    weights = {name: value for name, value in weights.items() if not name.endswith(INDEX)}
    check_names(weights, modules, source)
    names = {getattr(module, source): getattr(module, target) for module in modules}
    converted = {}
    for name, value in weights.items():
        module, _, tensor = name.rpartition('.')
        converted[f'{names[module]}.{tensor}'] = value
        if tensor == 'attention_biases' and target == 'released':
            index = relative_index(round(value.shape[1] ** 0.5))
            converted[f'{names[module]}.{INDEX}'] = index
    return converted


def find_layout(weights, form):
    """Count the blocks and the heads of each stage.

    Args:
        weights (dict[str, Tensor]): A backbone's weights.
        form (str): Their form.

    Returns:
        tuple[list[int], list[int]]: Depths and numbers of heads.
    """
    blocks, heads = {}, {}
    for name in weights:
        if match := re.fullmatch(QKV[form], name):
            stage, block, head = (int(number) for number in match.groups())
            blocks.setdefault(stage, set()).add(block)
            heads[stage] = max(heads.get(stage, 0), head + 1)
    return [len(blocks[stage]) for stage in sorted(blocks)], [heads[s] for s in sorted(heads)]


def check_names(weights, modules, form):
    """Check that a backbone's weights are all there, and no others.

    Args:
        weights (dict[str, Tensor]): The weights.
        modules (list[Module]): The modules that they are of.
        form (str): Their form.

    Raises:
        CheckpointError: If one is missing or surplus.
    """
    expected = {f'{getattr(m, form)}.{tensor}' for m in modules for tensor in m.tensors}
    missing = sorted(expected - weights.keys())
    surplus = [
        name for name in weights.keys() - expected if not name.endswith('num_batches_tracked')
    ]
    if found := list_problems({'lack': missing, 'have besides': sorted(surplus)}):
        raise CheckpointError(f'The weights, in {form} form, {" and ".join(found)}.')


def list_modules(depths, num_heads):
    """List the modules of a backbone.

    Args:
        depths (Sequence[int]): Number of blocks of each stage.
        num_heads (Sequence[int]): Number of heads of each stage.

    Yields:
        Module: A convolution, a norm layer or a bias table.
    """
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


def conv_norm(ours, released, timm):
    """Yield the convolution and the norm layer of a pair."""
    yield Module(f'{ours}.conv', f'{released}.c', f'{timm}.conv', ('weight',))
    yield Module(f'{ours}.norm', f'{released}.bn', f'{timm}.bn', NORM)


def list_subsample(ours, released, timm):
    """Yield the modules of the subsampling before a stage."""
    for index, position in enumerate((0, 2)):
        theirs = (f'{released}.{position}', f'{timm}.res{index + 1}')
        yield from conv_norm(f'{ours}.depthwise{index}', *(f'{name}.0.m' for name in theirs))
        yield from list_ffn(f'{ours}.ffn{index}.branch', *(f'{name}.1.m' for name in theirs))
    merge = (f'{released}.1', f'{timm}.patchmerge')
    for index, name in enumerate(('expand', 'downsample', 'reduce')):
        yield from conv_norm(f'{ours}.{name}', *(f'{theirs}.conv{index + 1}' for theirs in merge))
    for index, name in enumerate(('reduce', 'expand')):
        theirs = (f'{part}.se.fc{index + 1}' for part in merge)
        yield Module(f'{ours}.squeeze_excite.{name}', *theirs, ('weight', 'bias'))


def list_ffn(ours, released, timm):
    """Yield the modules of a feed-forward network."""
    for index, name in enumerate(('expand', 'reduce')):
        yield from conv_norm(f'{ours}.{name}', f'{released}.pw{index + 1}', f'{timm}.pw{index + 1}')


def list_block(ours, released, timm, num_heads):
    """Yield the modules of a block."""
    for index in (0, 1):
        depthwise, ffn = f'dw{index}.m', f'ffn{index}.m'
        yield from conv_norm(
            f'{ours}.depthwise{index}', f'{released}.{depthwise}', f'{timm}.{depthwise}'
        )
        yield from list_ffn(f'{ours}.ffn{index}.branch', f'{released}.{ffn}', f'{timm}.{ffn}')
    ours += '.attention.branch.attention'
    theirs = [f'{name}.mixer.m.attn' for name in (released, timm)]
    yield Module(ours, *theirs, ('attention_biases',))
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


def convert_head(weights, source, target):
    """Spell the names of a classifier's head in another form.

    Args:
        weights (dict[str, Tensor]): The head's weights.
        source (str): Their form.
        target (str): The form to give them.

    Returns:
        dict[str, Tensor]: The weights under their new names.

    Raises:
        CheckpointError: If a name is surplus.
    """
    if source == target:
        return weights
    names = {getattr(module, source): getattr(module, target) for module in HEAD}
    surplus = [name for name in weights if name.rpartition('.')[0] not in names]
    if surplus:
        raise CheckpointError(
            f'The head has weights that {target} has none for: {shorten(surplus)}.'
        )
    renamed = ((name.rpartition('.'), value) for name, value in weights.items())
    return {f'{names[module]}.{tensor}': value for (module, _, tensor), value in renamed}


def convert_detector(weights, source, target):
    """Spell the names of a detector's neck in another form; all others are mmdet's everywhere.

    Args:
        weights (dict[str, Tensor]): The weights of all but the backbone.
        source (str): Their form.
        target (str): The form to give them.

    Returns:
        dict[str, Tensor]: The weights under their new names.
    """
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
            spellings = dict(mmevit=ours, released=released)
            names[spellings[source]] = spellings[target]
    converted = {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in names if name.startswith(prefix)), '')
        converted[names.get(prefix, '') + name.removeprefix(prefix)] = value
    return converted
