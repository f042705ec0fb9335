"""Properties of a data set from its config, and checks that its files exist."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS

from mmevit.datasets.lists import read_metainfo, reads_data_list
from mmevit.utils.configs import find_class, is_remote, list_dataset_configs, type_name
from mmevit.utils.errors import ConfigError


class DatasetInfo:
    """The config of a data set, in whose scope this must be used, and what follows from it."""

    def __init__(self, cfg: dict, split: str = '') -> None:
        self.cfg, self.split = cfg, split
        self.type: Any = find_class(DATASETS, cfg)
        self.is_remote = is_remote(cfg)
        self.root = cfg.get('data_root') or ''
        prefixes = cfg.get('data_prefix') or {}
        self.prefixes = dict(img=prefixes) if isinstance(prefixes, str) else prefixes
        self.metainfo = cfg.get('metainfo') or {}
        self.default_metainfo = getattr(self.type, 'METAINFO', {})
        # The latter is an argument in mmpretrain.
        self.stated_classes = self.metainfo.get('classes') or cfg.get('classes')

    @property
    def ann_file(self) -> Path:
        """Path of the annotation file."""
        return Path(self.root, self.cfg.get('ann_file') or '')

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes from config, type or annotation file; empty if unknown or a file is missing."""
        classes = self.stated_classes or self.default_metainfo.get('classes')
        if classes is None and reads_data_list(self.type) and not self.is_remote:
            classes = read_metainfo(self.ann_file).get('classes')
        if isinstance(classes, str):
            classes = list_from_file(classes) if os.path.isfile(classes) else None
        return tuple(classes or ())

    @cached_property
    def unread(self) -> Any:
        """A ``CustomDataset`` of mmpretrain, built without its files; None if of another type.

        Its ``ann_file``, ``img_prefix`` and ``with_label`` are resolved.
        """
        is_custom = inherits_from(self.type, 'mmpretrain', 'CustomDataset')
        return self.build(lazy_init=True) if is_custom and not self.is_remote else None

    def build(self, **options: Any) -> Any:
        """Build the data set without its pipeline."""
        return DATASETS.build({**self.cfg, 'pipeline': [], **options})

    @property
    def image_folder(self) -> Path:
        """Folder of the images."""
        return Path(self.root, self.prefixes.get('img') or '')

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """Class folders in the order in which mmpretrain numbers them; empty if there are none."""
        built = self.unread
        # Its length would read its files.
        if built is None or built.ann_file or not built.with_label:
            return ()
        if not os.path.isdir(built.img_prefix):
            return ()
        from mmpretrain.datasets.custom import find_folders

        return tuple(find_folders(built.img_prefix)[0])

    @property
    def reads_coco(self) -> bool:
        """Whether it has an annotation file and reads it as ``CocoDataset`` does."""
        return (
            bool(self.cfg.get('ann_file'))
            and inherits_from(self.type, 'mmdet', 'CocoDataset')
            and self.type.load_data_list.__qualname__ == 'CocoDataset.load_data_list'
            # CocoPanopticDataset has another layout and another API to read it.
            and self.type.COCOAPI.__name__ == 'COCO'
        )

    @property
    def loads_masks(self) -> bool:
        """Whether its pipeline loads instance masks."""
        return any(step.get('with_mask', False) for step in self.annotation_loaders)

    @property
    def loads_only_polygons(self) -> bool:
        """Whether its pipeline leaves out objects with run-length masks."""
        return any(not step.get('poly2mask', True) for step in self.annotation_loaders)

    @property
    def annotation_loaders(self) -> list[dict]:
        """The steps of its pipeline that load annotations."""
        pipeline = self.cfg.get('pipeline') or ()
        return [step for step in pipeline if type_name(step) == 'LoadAnnotations']


def list_datasets(cfg: Config, splits: Sequence[str]) -> Iterator[DatasetInfo]:
    """Yield the data sets of some splits of a config, in whose scope this must be called."""
    for split in splits:
        for dataset in list_dataset_configs(cfg, split):
            yield DatasetInfo(dataset, split)


def inherits_from(cls: type | None, library: str, name: str) -> bool:
    """Whether a class inherits from one of a library, without importing it."""
    return any(
        base.__name__ == name and base.__module__.partition('.')[0] == library
        for base in getattr(cls, '__mro__', ())
    )


class MissingFilesError(ConfigError):
    """Files of a config are missing on this machine."""


def check_images(ann_file: str | Path, names: Collection[str], folder: str | Path) -> None:
    """Raise MissingFilesError if images of an annotation file are missing."""
    if missing := find_missing(names, folder):
        raise MissingFilesError(
            f'{len(missing)} of {len(names)} images of {ann_file} are missing, such as '
            f'{missing[0]}. Put the images into {folder}, or correct data_prefix.'
        )


def find_missing(names: Collection[str], folder: str | Path = '') -> list[str]:
    """List the missing files of a folder, reading each of its subfolders only once."""
    names_by_parent = defaultdict(set)
    for path in names:
        parent, slash, name = path.rpartition('/')
        names_by_parent[parent + slash].add(name)
    missing = []
    for parent, expected in names_by_parent.items():
        parent = os.path.join(folder, parent)
        # Reading a pipe in the place of an image would block.
        entries = os.scandir(parent) if os.path.isdir(parent) else ()
        present = {entry.name for entry in entries if entry.is_file()}
        missing += [os.path.join(parent, name) for name in sorted(expected - present)]
    return missing
