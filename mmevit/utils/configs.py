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
