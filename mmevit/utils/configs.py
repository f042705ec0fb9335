"""Read configs, and build models from them."""

import os
import warnings
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope, Registry
from mmengine.utils import import_modules_from_strings

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


def read_config(path, options, needs=()):
    """Read a config file.

    Args:
        path (str): The file, or a name such as ``mmevit::efficientvit/retinanet_evit_m4.py`` for
            one of an installed library.
        options (dict | None): Settings that override it.
        needs (Sequence[str]): Settings that are asked for. Defaults to none.

    Returns:
        Config: The config.

    Raises:
        ConfigError: If it is missing, cannot be read, or lacks one of ``needs``.
    """
    is_installed = '::' in str(path)
    if not is_installed and not os.path.isfile(path):
        raise ConfigError(f'The config {path} is missing: the ones here are in configs/.')
    try:
        if is_installed:
            cfg = get_config(path)
        else:
            cfg = Config.fromfile(path, import_custom_modules=False)
    # A config is code, and raises what it likes.
    except Exception as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ConfigError(f'The config {path} cannot be read: {reason}') from error
    if cfg.get('custom_imports'):
        # Outside of the above, so that an error in a module of the user keeps its traceback.
        with reraise_as_config_error():
            import_modules_from_strings(**cfg.custom_imports)
    if options is not None:
        try:
            cfg.merge_from_dict(options)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options does not fit {path}: {one_line(error)}') from error
    missing = [name for name in needs if cfg.get(name) is None]
    if missing:
        raise ConfigError(f'{path} is no whole config: it has no {", ".join(missing)}.')
    with reraise_as_config_error():  # This imports what a config in Python style names.
        convert_sizes(cfg._cfg_dict)
        if cfg.get('default_scope') is None:
            cfg.default_scope = find_library(cfg.get('model') or {}) or 'mmengine'
    return cfg


def build_model(cfg):
    """Build the model of a config as a runner does, but without one.

    Args:
        cfg (Config): The config, in which the model gets the data preprocessor that stands beside
            it.

    Returns:
        nn.Module: The model.
    """
    if cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')
    with scope, reraise_as_config_error():
        return MODELS.build(cfg.model)


def type_name(cfg):
    """Name of the class that a config builds, without the scope of its library.

    Args:
        cfg (dict): A config; its ``type`` is a string or, in configs in Python style, a class.

    Returns:
        str: The name, empty if there is no type.

    Example:
        >>> type_name(dict(type='mmdet.CocoDataset'))
        'CocoDataset'
    """
    kind = cfg.get('type', '')
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def as_list(cfg):
    """Make a list of what a config may hold one or several of, such as evaluators.

    Args:
        cfg (dict | Sequence[dict]): The one, or several.

    Returns:
        Sequence[dict]: The several.

    Example:
        >>> as_list(dict(type='CocoMetric'))
        [{'type': 'CocoMetric'}]
    """
    return [cfg] if isinstance(cfg, dict) else cfg


def find_step(pipeline, name):
    """Find a step of a pipeline by its type, or None."""
    return next((step for step in pipeline if type_name(step) == name), None)


def find_datasets(dataset):
    """Yield the configs of the data sets that a wrapper such as ``RepeatDataset`` stands around.

    Args:
        dataset (dict): Config of a data set or of a wrapper.

    Yields:
        dict: Config of a data set that reads files.

    Example:
        >>> list(find_datasets(dict(type='RepeatDataset', dataset=dict(type='CocoDataset'))))
        [{'type': 'CocoDataset'}]
    """
    if 'dataset' in dataset:
        yield from find_datasets(dataset['dataset'])
    elif 'datasets' in dataset:
        for part in dataset['datasets']:
            yield from find_datasets(part)
    else:
        yield dataset


def is_remote(dataset: dict) -> bool:
    """Whether the files of a data set or a metric are not on this machine.

    Example:
        >>> is_remote(dict(data_root='s3://bucket/coco'))
        True
    """
    places = [str(dataset.get(name)) for name in ('data_root', 'ann_file', 'data_prefix')]
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or any('://' in place for place in places)


def find_class(registry: Registry, cfg: dict) -> type | None:
    """Find the class that a config builds in the default scope, None if it is not registered."""
    kind = cfg.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


def find_library(cfg):
    """Name the OpenMMLab library of a model whose type has its module, as in Python-style configs.

    Args:
        cfg (dict): Config of a model; its ``type`` is a class, or a string with a module.

    Returns:
        str | None: The library, such as ``'mmdet'``; of a class of the user, that of its base.

    Example:
        >>> find_library(dict(type='mmdet.models.RetinaNet'))
        'mmdet'
    """
    kind = cfg.get('type')
    modules = [base.__module__ for base in getattr(kind, '__mro__', ())]
    if isinstance(kind, str):
        modules = [kind.rpartition('.')[0]]
    packages = [module.partition('.')[0] for module in modules]
    return next((name for name in packages if name.startswith('mm') and name != 'mmevit'), None)


def convert_sizes(cfg, in_pipeline=False):
    """Make tuples of the lists of two whole numbers in all pipelines of a config, such as of sizes.

    JSON, YAML and ``--cfg-options`` have lists only, but transforms of mmcv want tuples. A list
    under a plural, such as ``scales=[640, 704]``, holds alternatives and stays a list.

    Args:
        cfg (dict | list | tuple): A config or a part of one, which is changed.
        in_pipeline (bool): Whether it is a part of a pipeline. Defaults to False.

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
