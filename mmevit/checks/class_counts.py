"""Check that the numbers of classes in a config agree with the data."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS

from mmevit.utils.configs import as_list, default_scope, find_class, find_preprocessor, type_name
from mmevit.utils.errors import ConfigError, shorten

from .classes import accepts_any_classes
from .dataset_info import list_datasets

PANOPTIC_NUMBERS = ('num_things_classes', 'num_stuff_classes')
NUMBERS = ('num_classes', *PANOPTIC_NUMBERS)
# Parts and heads whose classes are not those of the data: object or background, one task of
# several, edges, or stuff from other files. Data preprocessors have a rule of their own.
OTHER_PARTS = ('rpn_head', 'task_heads', 'teacher', 'teacher_config', 'reid', 'data_preprocessor')
OTHER_HEADS = ('STDCHead', 'FusedSemanticHead', 'SCNetSemanticHead')


class Classes(NamedTuple):
    """Number of classes, and of things if known, else 0."""

    num: int
    num_things: int
    source: str


class Number(NamedTuple):
    """A number of classes in a config, and the sum of things and stuff in the same part."""

    name: str
    value: Any
    total: int = 0


def check_number_of_classes(cfg: Config, splits: Sequence[str]) -> None:
    """Raise ConfigError if a number of classes, stated or the default of a head, is wrong.

    Where no data set names its classes, the numbers must agree with that of the first head.
    """
    if accepts_any_classes(cfg):
        return
    with default_scope(cfg):
        numbers = list(find_numbers(cfg, splits))
        known = list(find_classes(cfg, splits))
    heads = [number for number in numbers if number.name.endswith('.num_classes')]
    stuff = [number for number in numbers if number.name.endswith('.num_stuff_classes')]
    if not known and not any(number.value for number in stuff):
        known = [Classes(head.value, 0, f'{head.name} is {head.value}') for head in heads[:1]]
    for classes in known:
        for number in numbers:
            check_number(number, classes)


def check_number(number: Number, classes: Classes) -> None:
    """Raise ConfigError if a number disagrees with some classes."""
    name, value, total = number
    key = name.rpartition('.')[2]
    stated, fix = f'{name} is {value}', 'Make them agree.'
    if key == 'topk':
        is_right = max([value] if isinstance(value, int) else value) <= classes.num
        fix = f'Use a topk of at most {classes.num}.'
    elif key == 'class_weight':
        # Some losses also weigh the background.
        is_right = len(value) in (classes.num, classes.num + 1)
        stated = f'{name} has {len(value)} values'
    elif key in PANOPTIC_NUMBERS and not classes.num_things:
        is_right = total == classes.num
        stated = f'{stated} (things and stuff together: {total})'
    elif key == 'num_stuff_classes':
        is_right = value == classes.num - classes.num_things
    else:
        is_right = value == (classes.num_things or classes.num)
    if not is_right:
        raise ConfigError(f'{stated}, but {classes.source}. {fix}')


def find_classes(cfg: Config, splits: Sequence[str]) -> Iterator[Classes]:
    """Yield the classes of each data set, from its config, type or folders."""
    for dataset in list_datasets(cfg, splits):
        is_stated = bool(dataset.stated_classes)
        # A list of images may have other classes than ImageNet's; its labels are checked later.
        if not is_stated and getattr(dataset.unread, 'ann_file', None):
            continue
        names = dataset.classes or dataset.folders
        kind = 'classes' if dataset.classes else 'class folders'
        is_default = not is_stated and 'classes' in dataset.default_metainfo
        metainfo = (dataset.default_metainfo if is_default else {}) | dataset.metainfo
        source = f'the {dataset.split} data has {len(names)} {kind} ({shorten(names)})'
        if is_default:
            source += ' by default, as metainfo.classes is not set'
        if names:
            yield Classes(len(names), len(metainfo.get('thing_classes') or ()), source)


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
        total = sum(numbers.get(key, 0) for key in PANOPTIC_NUMBERS)
        if isinstance(part.get('class_weight'), (list, tuple)):
            numbers['class_weight'] = part['class_weight']
        # A head only uses it to log its accuracy in training.
        if 'topk' in part and (part.get('cal_acc') or type_name(part) == 'Accuracy'):
            numbers['topk'] = part['topk']
        for key, value in numbers.items():
            yield Number(f'{name}.{key}', value, total)
    # A preprocessor needs the number to mix labels.
    name, preprocessor = find_preprocessor(cfg)
    mixing = preprocessor.get('batch_augments', cfg.model.get('train_cfg'))
    if preprocessor.get('to_onehot') or (isinstance(mixing, dict) and mixing.get('augments')):
        yield Number(f'{name}.num_classes', preprocessor.get('num_classes'))


def count_classes(model: dict) -> tuple[int | None, int | None]:
    """Return the number of classes and the ignored label of a model, None if unknown.

    Must be called in the scope of the model, which may be in a wrapper for test-time augmentation.
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
