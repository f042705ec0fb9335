"""Check COCO annotation files and the images that they name."""

import json
import logging
import os
from collections import defaultdict

from mmengine.logging import print_log

from mmevit.datasets.faults import find_coco_faults
from mmevit.errors import ConfigError, shorten

# What mmdet's CocoDataset reads of each entry.
COCO_FIELDS = dict(
    images={'id', 'file_name', 'height', 'width'},
    annotations={'id', 'image_id', 'category_id', 'bbox', 'area'},
    categories={'id', 'name'},
)


def read_coco(ann_file, split):
    """Read a COCO annotation file and check its layout.

    Args:
        ann_file (Path): The annotation file.
        split (str): What it is for: a test set needs no annotations.

    Returns:
        dict: Its content.

    Raises:
        ConfigError: If it does not parse, or lacks a part or a field.
    """
    try:
        content = json.loads(ann_file.read_bytes())
    except ValueError as error:
        raise ConfigError(
            f'{ann_file} is not a whole JSON file ({error}): copy or download it again'
        ) from error
    parts = [part for part in COCO_FIELDS if part != 'annotations' or split != 'test']
    for part in parts:
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not entries:
            raise ConfigError(
                f"{ann_file} has no {part}: expected is COCO's layout, an object with the lists "
                f'{", ".join(parts)}'
            )
        fields = COCO_FIELDS[part]
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not fields <= entry.keys():
                raise ConfigError(
                    f"{ann_file} is not in COCO's layout: {part}[{index}] needs "
                    f'{", ".join(sorted(fields))}'
                )
    return content


def check_coco(dataset, content, ann_file):
    """Check that mmdet reads from an annotation file what it says, and warn of what it leaves out.

    Args:
        dataset (dict): Config of a ``CocoDataset``.
        content (dict): What is in the annotation file.
        ann_file (Path): The annotation file.

    Raises:
        ConfigError: If nothing can be trained on it, or classes would be mistaken.
    """
    classes = list_classes(dataset)
    if classes is None:
        return
    names = [category['name'] for category in content['categories']]
    if not set(classes) & set(names):
        raise ConfigError(
            f'{ann_file} has the categories {shorten(names)}, but the data set has the classes '
            f'{shorten(classes)}, so that nothing would be learnt: name them in '
            "dataset.metainfo.classes, and their number in the head's num_classes"
        )
    faults = find_coco_faults(content, classes)
    if kinds := faults.of('fatal'):
        raise ConfigError(
            f'{ann_file} cannot be trained on or evaluated: {faults.describe(kinds)}; '
            'tools/check_dataset.py CONFIG lists all that is wrong'
        )
    if kinds := faults.of('fault'):
        print_log(
            f'{ann_file} has faults, of which tools/check_dataset.py CONFIG tells more: '
            f'{faults.describe(kinds)}.',
            logger='current',
            level=logging.WARNING,
        )


def list_classes(dataset):
    """List the classes of a COCO data set.

    Args:
        dataset (dict): Config of a ``CocoDataset``.

    Returns:
        Sequence[str] | None: Their names, or None where the config names a file that lists them.
    """
    from mmdet.datasets import CocoDataset

    classes = (CocoDataset.METAINFO | (dataset.get('metainfo') or {}))['classes']
    return None if isinstance(classes, str) else classes


def check_images(content, ann_file, folder):
    """Check that the images that an annotation file names are there.

    Args:
        content (dict): What is in the annotation file.
        ann_file (Path): The annotation file.
        folder (Path): Folder that the names of the images start from.

    Raises:
        ConfigError: If one is not.
    """
    names_by_folder = defaultdict(set)
    for image in content['images']:
        path = folder / image['file_name']
        names_by_folder[path.parent].add(path.name)
    missing = []
    for parent, names in names_by_folder.items():
        entries = os.scandir(parent) if parent.is_dir() else ()
        # A pipe in the place of an image would be waited for.
        present = {entry.name for entry in entries if os.path.isfile(entry)}
        missing += [str(parent / name) for name in sorted(names - present)]
    if missing:
        raise ConfigError(
            f'{ann_file} names {len(missing)} of {len(content["images"])} images that are not '
            f'there, such as {missing[0]}: put the images into {folder}, or mend data_prefix'
        )
