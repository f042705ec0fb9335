"""Reading what configs say."""

from mmengine.registry import Registry


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
