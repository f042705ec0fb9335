"""Check that the numbers of classes in a config agree with the data."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from mmevit.utils.configs import as_list, default_scope, find_class, find_datasets, type_name
from mmevit.utils.errors import ConfigError, shorten

from .classes import (
    accepts_any_classes,
    build_unread,
    list_class_folders,
    list_classes,
    stated_classes,
)
from .pixels import find_preprocessor

PANOPTIC_NUMBERS = ('num_things_classes', 'num_stuff_classes')
NUMBERS = ('num_classes', *PANOPTIC_NUMBERS)
# Parts and heads whose classes are not those of the data: object or background, one task of
# several, edges, or stuff from other files. label_numbers handles data preprocessors.
OTHER_PARTS = ('rpn_head', 'task_heads', 'teacher', 'teacher_config', 'reid', 'data_preprocessor')
OTHER_HEADS = ('STDCHead', 'FusedSemanticHead', 'SCNetSemanticHead')


class Classes(NamedTuple):
    """Number of classes; ``num_things`` is None unless it is known."""

    num: int
    num_things: int | None
    source: str


class Number(NamedTuple):
    """A number of classes in a config; ``same_part`` has all those of the same part."""

    name: str
    key: str
    value: Any
    same_part: dict


def check_number_of_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Check every number of classes in a config, stated or the default of a head.

    Where no data set names its classes, the numbers must agree with that of the first head.

    Args:
        cfg: The config of a model and its data.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run will use.

    Raises:
        ConfigError: If two numbers differ, or ``topk`` is larger than they are.
    """
    if accepts_any_classes(cfg):
        return
    with default_scope(cfg):
        numbers = [*find_numbers(cfg, splits), *label_numbers(cfg)]
        known = list(find_classes(cfg, splits))
    has_stuff = any(number.key == 'num_stuff_classes' and number.value for number in numbers)
    if not known and not has_stuff:
        heads = [number for number in numbers if number.key == 'num_classes']
        known = [Classes(head.value, None, f'{head.name} is {head.value}') for head in heads[:1]]
    for classes in known:
        for number in numbers:
            check_number(number, classes)


def check_number(number: Number, classes: Classes) -> None:
    """Raise ConfigError if a number disagrees with some classes."""
    stated, fix = f'{number.name} is {number.value}', 'Make them agree.'
    if number.key == 'topk':
        values = [number.value] if isinstance(number.value, int) else number.value
        is_right, fix = max(values) <= classes.num, f'Use a topk of at most {classes.num}.'
    elif number.key == 'class_weight':
        # Some losses also weigh the background.
        is_right = len(number.value) in (classes.num, classes.num + 1)
        stated = f'{number.name} has {len(number.value)} values'
    elif number.key in PANOPTIC_NUMBERS and classes.num_things is None:
        total = sum(number.same_part.get(key, 0) for key in PANOPTIC_NUMBERS)
        is_right = total == classes.num
        stated = f'{stated} (things and stuff together: {total})'
    elif number.key == 'num_stuff_classes':
        is_right = number.value == classes.num - (classes.num_things or 0)
    else:
        is_right = number.value == (classes.num_things or classes.num)
    if not is_right:
        raise ConfigError(f'{stated}, but {classes.source}. {fix}')


def find_classes(cfg: Config, splits: Sequence[str]) -> Iterator[Classes]:
    """Yield the classes of each data set, from its config, type or folders."""
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader') or {}
        for dataset in find_datasets(dataloader.get('dataset') or {}):
            stated = stated_classes(dataset)
            # A list of images may have other classes than ImageNet's; its labels are checked later.
            if not stated and getattr(build_unread(dataset), 'ann_file', None):
                continue
            if names := list_classes(dataset):
                default = getattr(find_class(DATASETS, dataset), 'METAINFO', {})
                is_default = not stated and 'classes' in default
                metainfo = (default if is_default else {}) | (dataset.get('metainfo') or {})
                things = metainfo.get('thing_classes')
                yield Classes(
                    len(names),
                    len(things) if things else None,
                    f'the {split} data has {len(names)} classes ({shorten(names)})'
                    + (' by default, as metainfo.classes is not set' if is_default else ''),
                )
            elif folders := list_class_folders(dataset):
                source = f'the {split} data has {len(folders)} class folders ({shorten(folders)})'
                yield Classes(len(folders), None, source)


def find_numbers(cfg: Config, splits: Sequence[str]) -> Iterator[Number]:
    """Yield the numbers of classes in a config, including the defaults of heads."""
    names = ['model', *(f'{split}_evaluator' for split in splits)]
    for name, part in walk({name: cfg.get(name) for name in names}):
        if part.get('class_agnostic') or type_name(part) in OTHER_HEADS:
            continue
        numbers = {key: part[key] for key in NUMBERS if key in part}
        is_head = name.rstrip('[]0123456789').endswith(('head', 'heads'))
        if is_head and not numbers and (head := find_class(MODELS, part)):
            numbers = {key: default_of(head, key) for key in NUMBERS}
        # Backbones have -1 or None for no classifier.
        numbers = {key: value for key, value in numbers.items() if value not in (None, -1)}
        for key, value in numbers.items():
            yield Number(f'{name}.{key}', key, value, numbers)
        if isinstance(part.get('class_weight'), (list, tuple)):
            yield Number(f'{name}.class_weight', 'class_weight', part['class_weight'], numbers)
        # A head only uses it to log its accuracy in training.
        if 'topk' in part and (part.get('cal_acc') or type_name(part) == 'Accuracy'):
            yield Number(f'{name}.topk', 'topk', part['topk'], numbers)


def label_numbers(cfg: Config) -> Iterator[Number]:
    """Yield the number of classes with which a preprocessor mixes labels."""
    name, preprocessor = find_preprocessor(cfg)
    mixing = preprocessor.get('batch_augments', cfg.model.get('train_cfg'))
    if preprocessor.get('to_onehot') or (isinstance(mixing, dict) and mixing.get('augments')):
        value = preprocessor.get('num_classes')
        yield Number(f'{name}.num_classes', 'num_classes', value, preprocessor)


def count_classes(model: dict) -> tuple[int | None, int | None]:
    """Return the number of classes and the ignored label of a model.

    Either is None if unknown. Must be called in the scope of the model.

    Args:
        model: Its config, or that of a wrapper for test-time augmentation.

    Example:
        >>> count_classes(dict(decode_head=dict(num_classes=19)))
        (19, 255)
    """
    model = model.get('module') or model
    if decode_head := model.get('decode_head'):
        head = as_list(decode_head)[-1]
        num_classes = head.get('num_classes')
        # A single output separates two labels.
        return num_classes and max(num_classes, 2), head.get('ignore_index', 255)
    head = model.get('head') or {}
    default = default_of(find_class(MODELS, head), 'num_classes')
    return head.get('num_classes', default), None


def walk(cfg: Any, name: str = '') -> Iterator[tuple[str, dict]]:
    """Yield the name and the config of a part and of all parts in it.

    Example:
        >>> [name for name, _ in walk(dict(model=dict(head=[dict(a=1), dict(b=2)])))]
        ['', 'model', 'model.head[0]', 'model.head[1]']
    """
    if isinstance(cfg, dict):
        yield name, cfg
        for key, value in cfg.items():
            if key not in OTHER_PARTS:
                yield from walk(value, f'{name}.{key}' if name else str(key))
    elif isinstance(cfg, (list, tuple)):
        for index, value in enumerate(cfg):
            yield from walk(value, f'{name}[{index}]')


def default_of(cls: type | None, argument: str) -> Any:
    """Return the default of an argument of a constructor, None if it has none."""
    for base in getattr(cls, '__mro__', ()):
        parameters = inspect.signature(base.__init__).parameters
        if argument in parameters:
            default = parameters[argument].default
            return None if default is inspect.Parameter.empty else default
        if not any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
            break
    return None
