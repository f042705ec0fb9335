"""Reading what configs say."""


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


def convert_sizes(cfg):
    """Make tuples of the lists of whole numbers in all pipelines of a config, such as of a size.

    JSON, YAML and ``--cfg-options`` have lists only, but transforms of mmcv want tuples.

    Args:
        cfg (dict): A config or a part of one, which is changed.

    Example:
        >>> cfg = dict(test_pipeline=[dict(type='Resize', scale=[64, 32])])
        >>> convert_sizes(cfg)
        >>> cfg['test_pipeline'][0]['scale']
        (64, 32)
    """
    for key, value in cfg.items():
        if 'pipeline' in key:
            cfg[key] = with_tuples(value)
        else:
            for part in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(part, dict):
                    convert_sizes(part)


def with_tuples(value):
    """Copy a value with tuples for its lists of whole numbers."""
    if isinstance(value, dict):
        return type(value)({key: with_tuples(part) for key, part in value.items()})
    if not isinstance(value, (list, tuple)):
        return value
    is_size = value and all(type(part) is int for part in value)
    return (tuple if is_size else type(value))(map(with_tuples, value))
