"""Read lists of images and labels for classifiers."""

from pathlib import Path
from typing import Any

import mmengine
import msgspec
from mmengine.dataset import BaseDataset

from mmevit.utils.errors import ConfigError

from .coco import parse_json


class Metainfo(msgspec.Struct):
    """The metadata of a list in OpenMMLab's layout."""

    metainfo: dict[str, Any]


class Entry(msgspec.Struct, gc=False):
    """An entry of ``data_list``."""

    img_path: str
    gt_label: int | list[int] = []


class DataList(Metainfo):
    """A list in OpenMMLab's layout."""

    data_list: list[Entry]


def reads_data_list(cls: type | None) -> bool:
    """Whether a data set reads a list in OpenMMLab's layout."""
    return getattr(cls, 'load_data_list', None) is BaseDataset.load_data_list


def read_metainfo(ann_file: Path) -> dict[str, Any]:
    """Read ``metainfo`` of a JSON list, with ``classes`` as mmpretrain does.

    Empty if the file is missing, not JSON or invalid.
    """
    if ann_file.suffix != '.json' or not ann_file.is_file():
        return {}
    try:
        metainfo = parse_json(ann_file, Metainfo).metainfo
    # read_data_list reports what is wrong.
    except ValueError:
        return {}
    if 'categories' in metainfo:
        categories = sorted(metainfo['categories'], key=lambda category: category['id'])
        metainfo.setdefault('classes', [category['category_name'] for category in categories])
    return metainfo


def read_data_list(ann_file: Path) -> tuple[list[str], list[int | list[int]]]:
    """Read paths and labels of a list in OpenMMLab's layout, raise ConfigError if it differs."""
    try:
        if ann_file.suffix == '.json':
            content = parse_json(ann_file, DataList)
        else:
            # Pickles may contain NumPy numbers.
            plain = msgspec.to_builtins(mmengine.load(ann_file), enc_hook=lambda x: x.tolist())
            content = msgspec.convert(plain, DataList)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{ann_file} is not in OpenMMLab's layout ({error}). Write an object with metainfo and "
            'data_list, whose entries have an img_path, and a gt_label that is an integer or a '
            'list of integers.'
        ) from error
    entries = content.data_list
    return [entry.img_path for entry in entries], [entry.gt_label for entry in entries]


def read_text_list(ann_file: Path, with_label: bool) -> tuple[list[str], list[int]]:
    """Read a text file of paths, each with a label unless ``with_label`` is False.

    Raises ConfigError if a label is not a number.
    """
    with open(ann_file, encoding='utf-8') as file:
        lines = [line.rstrip('\n') for line in file]
    if not with_label:
        return lines, []
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        path, _, label = line.strip().rpartition(' ')
        try:
            labels.append(int(label))
        except ValueError:
            raise ConfigError(
                f'Line {number} of {ann_file} is {line.strip()!r}. Write a path, a space and the '
                'number of the class.'
            ) from None
        paths.append(path)
    return paths, labels
