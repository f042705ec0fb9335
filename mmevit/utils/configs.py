"""Read configs, and build models from them."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import import_modules_from_strings
from torch import nn

from .errors import ConfigError, one_line, reraise_as_config_error

# Where mim and mmengine look for the configs and the model index of a package. setup.py adds the
# configs, so that a checkout which is not installed has none there.
MIM_FOLDER = Path(__file__).parents[1] / '.mim'
if not (MIM_FOLDER / 'configs').is_dir():
    warnings.warn(
        f'{MIM_FOLDER}/configs is missing, so that models and mmevit:: configs are not found by '
        'name. Run `pip install -e .` or `python setup.py --version` in the checkout.',
        stacklevel=2,
    )


def read_config(path: str | Path, options: dict | None, needs: Sequence[str] = ()) -> Config:
    """Read a config file, or raise ConfigError.

    Args:
        path: The file, or a name such as ``mmevit::efficientvit/retinanet_evit_m4.py``.
        options: Settings that override the config.
        needs: Required settings.
    """
    cfg = load_config_file(str(path))
    if cfg.get('custom_imports'):
        with reraise_as_config_error():
            import_modules_from_strings(**cfg.custom_imports)
    if options is not None:
        try:
            cfg.merge_from_dict(options)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ConfigError(
                f'Cannot apply --cfg-options to {path}: {one_line(error)}.'
            ) from error
    if missing := [name for name in needs if cfg.get(name) is None]:
        raise ConfigError(f'Incomplete config {path}: missing {", ".join(missing)}.')
    # Config._cfg_dict imports the classes of a Python-style config.
    with reraise_as_config_error():
        convert_sizes(cfg._cfg_dict)
        if cfg.get('default_scope') is None:
            cfg.default_scope = find_library(cfg.get('model') or {}) or 'mmengine'
    return cfg


def load_config_file(path: str) -> Config:
    """Load a config file without its custom imports."""
    if '::' not in path and not os.path.isfile(path):
        raise ConfigError(f'The config {path} is missing. Those of mmevit are in configs/.')
    try:
        if '::' in path:
            return get_config(path)
        return Config.fromfile(path, import_custom_modules=False)
    # A config is code, and may raise anything.
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ConfigError(f'The config {path} cannot be read: {reason}') from error


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config, with ``cfg.data_preprocessor``, as a runner does."""
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with default_scope(cfg), reraise_as_config_error():
        return MODELS.build(cfg.model)


def default_scope(cfg: Config) -> AbstractContextManager:
    """Look up registered names in the library of a config while the context is open."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')


def type_name(cfg: dict) -> str:
    """Return the type of a config without its scope, empty if it has none.

    It is a string or, in configs in Python style, a class.
    """
    cls = cfg.get('type', '')
    return cls.rpartition('.')[2] if isinstance(cls, str) else cls.__name__


def as_list(cfg: dict | Sequence[dict]) -> Sequence[dict]:
    """Return a list of configs, given one or several."""
    return [cfg] if isinstance(cfg, dict) else cfg


def find_preprocessor(cfg: Config) -> tuple[str, dict]:
    """Find name and config of the data preprocessor."""
    if cfg.model.get('data_preprocessor'):
        return 'model.data_preprocessor', cfg.model.data_preprocessor
    return 'data_preprocessor', cfg.get('data_preprocessor') or {}


def find_step(pipeline: Sequence[dict], name: str) -> dict | None:
    """Find a step of a pipeline by its type, or None."""
    return next((step for step in pipeline if type_name(step) == name), None)


def list_dataset_configs(cfg: Config, split: str) -> list[Any]:
    """List the data sets of a split, those inside wrappers; none without a data loader."""
    dataloader = cfg.get(f'{split}_dataloader')
    if dataloader is None:
        return []
    if not dataloader.get('dataset'):
        raise ConfigError(f'Incomplete config: {split}_dataloader has no dataset.')
    return list(find_datasets(dataloader.dataset))


def find_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the configs of the data sets inside wrappers such as ``RepeatDataset``."""
    if 'dataset' in dataset:
        yield from find_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from find_datasets(part)
    else:
        yield dataset


def is_remote(dataset: dict) -> bool:
    """Whether the files of a data set or a metric are not on this machine."""
    places = [str(dataset.get(name)) for name in ('data_root', 'ann_file', 'data_prefix')]
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or any('://' in place for place in places)


def find_class(registry: Registry, cfg: dict) -> type | None:
    """Find the class that a config builds, None if it is not registered."""
    cls = cfg.get('type')
    if not isinstance(cls, str):
        return cls
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(cls)


def find_library(model: dict) -> str | None:
    """Name the OpenMMLab library of a model, None if it is unknown.

    A class of the user belongs to the library of its base class.

    Example:
        >>> find_library(dict(type='mmdet.models.RetinaNet'))
        'mmdet'
    """
    cls = model.get('type')
    modules = [base.__module__ for base in getattr(cls, '__mro__', ())]
    if isinstance(cls, str):
        modules = [cls.rpartition('.')[0]]
    packages = [module.partition('.')[0] for module in modules]
    return next((name for name in packages if name.startswith('mm') and name != 'mmevit'), None)


def convert_sizes(cfg: Any, in_pipeline: bool = False) -> None:
    """Convert lists of two integers in the pipelines of a config to tuples, in place.

    JSON, YAML and ``--cfg-options`` only have lists, but transforms of mmcv expect sizes to be
    tuples. A list with a plural key, such as ``scales=[640, 704]``, has alternatives and is kept.

    Example:
        >>> cfg = dict(test_pipeline=[dict(type='Resize', scale=[64, 32])])
        >>> convert_sizes(cfg)
        >>> cfg['test_pipeline'][0]['scale']
        (64, 32)
    """
    for key, value in list(cfg.items() if isinstance(cfg, dict) else enumerate(cfg)):
        is_inside = in_pipeline or 'pipeline' in str(key)
        is_pair = isinstance(value, list) and [type(part) for part in value] == [int, int]
        if is_inside and is_pair and not str(key).endswith('s') and not isinstance(cfg, tuple):
            cfg[key] = tuple(value)
        elif isinstance(value, (dict, list, tuple)):
            convert_sizes(value, is_inside)
