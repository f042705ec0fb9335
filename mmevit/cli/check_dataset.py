"""Check the data of a config, and list its faults.

The exit status is 1 if data would be lost or training would not start, else 0.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from mmengine.config import Config

from mmevit.checks.class_counts import count_classes
from mmevit.checks.classes import check_classes
from mmevit.checks.dataset_info import DatasetInfo
from mmevit.checks.labels import find_wrong_labels, refuse_empty_datasets
from mmevit.cli.arguments import add_settings_argument, argument, command, ends_in
from mmevit.datasets.coco import read_coco
from mmevit.datasets.coco_faults import NOTHING_TO_LEARN, find_coco_faults
from mmevit.datasets.faults import STOPS, Faults, FaultType
from mmevit.datasets.formats.files import SPLITS
from mmevit.datasets.image_faults import find_image_faults, find_seg_map_faults
from mmevit.utils.configs import default_scope, find_step, list_dataset_configs, read_config
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.progress import show_progress
from mmevit.utils.tables import TABLES, format_table, write_table

BAD_ANN_FILE = FaultType('annotation file that cannot be read', STOPS, 'fatal')
OTHER_CLASSES = FaultType('data sets with different classes', STOPS, 'fatal')
WRONG_LABEL = FaultType('label that is not a class of the model', STOPS, 'fatal')
UNLABELLED = FaultType('file without annotations', 'its images are unlabelled', 'note')
# Options of a data set that do not change which files it reads.
NOT_OF_FILES = ('filter_cfg', 'pipeline', 'test_mode')
COLUMNS = dict(
    data=('data', '{}'),
    severity=('severity', '{}'),
    count=('count', '{:d}'),
    fault=('fault', '{}'),
    consequence=('in training', '{}'),
    examples=('examples', '{}'),
)
# The path of an image, and its annotated height and width.
Image = tuple[str, tuple[float, float] | None]


@dataclass
class CheckedDataset:
    """A data set, the splits that use it, and its faults."""

    config: dict
    splits: list[str] = field(default_factory=list)
    num_images: int = 0
    faults: Faults = field(default_factory=Faults)

    @property
    def name(self) -> str:
        """The splits, such as ``val+test``."""
        return '+'.join(self.splits)


@command(
    argument('config', 'config file of mmdet, mmpretrain or mmsegmentation'),
    add_settings_argument,
    argument(
        '--splits', 'splits to check (default: all)', nargs='+', choices=SPLITS, default=SPLITS
    ),
    argument('--out', 'file for the table: .md, .csv or .json', type=ends_in(*TABLES)),
)
def main(args: Namespace) -> None:
    """Check each data set once, print its faults, and write the table."""
    cfg = read_config(args.config, args.cfg_options)
    datasets = group_datasets(cfg, args.splits)
    if not datasets:
        raise ConfigError(f'{args.config} has no data for {", ".join(args.splits)}.')
    with default_scope(cfg):
        for dataset in datasets:
            check_dataset(dataset, cfg.get('model') or {})
    require_annotations(datasets)
    found = [(f'{each.name}, {each.num_images} images', each.faults) for each in datasets]
    # Classes of data sets that cannot be built are unknown.
    if not any(BAD_ANN_FILE in each.faults.counts for each in datasets):
        try:
            check_classes(cfg, args.splits)
        except ConfigError as error:
            differing = Faults()
            differing.add(OTHER_CLASSES, error)
            found.append(('all data', differing))
    rows = [row for data, faults in found for row in make_rows(data, faults)]
    note = f'Faults in the data of {args.config}.'
    print(f'{note}\n\n{format_table(rows, COLUMNS)}')
    if args.out:
        write_table(rows, COLUMNS, note, args.out)
    sys.exit(any(row['severity'] in ('fatal', 'fault') for row in rows))


def group_datasets(cfg: Config, splits: Sequence[str]) -> list[CheckedDataset]:
    """List the data sets of a config, each once even if several splits use it."""
    datasets = {}
    for split in splits:
        for dataset in list_dataset_configs(cfg, split):
            config = dataset.to_dict()
            files = {key: value for key, value in config.items() if key not in NOT_OF_FILES}
            datasets.setdefault(repr(files), CheckedDataset(config)).splits.append(split)
    return list(datasets.values())


def check_dataset(dataset: CheckedDataset, model: dict) -> None:
    """Find the faults of a data set and count its images; shows progress."""
    config, entries = dataset.config, []
    info = DatasetInfo(config)
    try:
        if info.reads_coco:
            images = check_coco(dataset, info)
        else:
            with refuse_empty_datasets(dataset.splits[0]):
                built = info.build()
            # Images inside other files, as in CIFAR, have no path.
            entries = [built.get_data_info(index) for index in range(len(built))]
            images = [(entry['img_path'], None) for entry in entries if entry.get('img_path')]
    # What a data set raises depends on its library.
    except Exception as error:
        dataset.faults.add(BAD_ANN_FILE, one_line(error))
        return
    dataset.num_images = len(images)
    num_classes, ignored = count_classes(model)
    labelled = [entry for entry in entries if 'gt_label' in entry]
    paths = [entry.get('img_path', '') for entry in labelled]
    labels = [np.asarray(entry['gt_label']).tolist() for entry in labelled]
    for example in find_wrong_labels(paths, labels, num_classes):
        dataset.faults.add(WRONG_LABEL, example)
    seg_maps = [entry for entry in entries if entry.get('seg_map_path')]
    pipeline = config.get('pipeline') or []
    color_type = (find_step(pipeline, 'LoadImageFromFile') or {}).get('color_type', 'color')
    in_channels = (model.get('backbone') or {}).get('in_channels', 3)
    load_map = find_step(pipeline, 'LoadAnnotations')
    backend = None if load_map is None else load_map.get('imdecode_backend', 'pillow')

    def check_image(image: Image) -> list[tuple[FaultType, str]]:
        path, size = image
        return [(fault, path) for fault in find_image_faults(path, size, color_type, in_channels)]

    def check_seg_map(entry: dict) -> list[tuple[FaultType, str]]:
        return find_seg_map_faults(entry, num_classes, ignored, backend)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = chain(pool.map(check_image, images), pool.map(check_seg_map, seg_maps))
        title = f'{dataset.name}: {len(images)} images'
        for pairs in show_progress(found, title, len(images) + len(seg_maps)):
            dataset.faults.add_all(pairs)


def check_coco(dataset: CheckedDataset, info: DatasetInfo) -> list[Image]:
    """Check the annotation file of a ``CocoDataset``, and list its images."""
    content = read_coco(info.ann_file, info.loads_masks)
    dataset.faults = find_coco_faults(content, info.classes, info.loads_only_polygons)
    if not content.annotations:
        dataset.faults.add(UNLABELLED, info.cfg['ann_file'])
    return [
        (str(info.image_folder / image.file_name), (image.height, image.width))
        for image in content.images
    ]


def require_annotations(datasets: Sequence[CheckedDataset]) -> None:
    """Add a fault to unlabelled data sets of a split without any annotations.

    In semi-supervised training some data sets have no annotations on purpose.
    """
    for split in ('train', 'val'):
        used = [dataset.faults for dataset in datasets if split in dataset.splits]
        if all({UNLABELLED, NOTHING_TO_LEARN} & faults.counts.keys() for faults in used):
            for faults in used:
                if faults.counts.pop(UNLABELLED, 0):
                    faults.add(NOTHING_TO_LEARN, 'no annotations')


def make_rows(data: str, faults: Faults) -> list[dict]:
    """Make a row for each type of fault, the most severe first."""
    rows = [
        dict(
            data=data,
            fault=fault.name,
            count=faults.counts[fault],
            severity=fault.severity,
            consequence=fault.consequence,
            examples=', '.join(faults.examples[fault]),
        )
        for fault in faults.of('fatal', 'fault', 'note')
    ]
    return rows or [dict(data=data, fault='none', severity='ok')]
