"""Look through the data of a config, and tell what is wrong with it and what becomes of that.

Ends with 0 if nothing is, with 1 if something would be lost or training would not start.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from rich.progress import track

from mmevit.checks.class_counts import count_classes
from mmevit.checks.classes import check_classes, list_classes
from mmevit.checks.coco import loads_masks, reads_coco
from mmevit.checks.labels import find_wrong_labels, refuse_empty_datasets
from mmevit.cli.arguments import add_settings_argument
from mmevit.cli.errors import one_sentence_errors
from mmevit.datasets.coco import read_coco
from mmevit.datasets.faults import (
    NO_LAYOUT,
    NOTHING_TO_LEARN,
    OTHER_CLASSES,
    WRONG_LABEL,
    Faults,
    find_coco_faults,
    find_image_faults,
)
from mmevit.datasets.seg_maps import find_seg_map_faults
from mmevit.utils.configs import find_datasets, find_step, read_config
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.files import check_ending
from mmevit.utils.tables import TABLES, format_table, write_table


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, of mmdet, mmpretrain or mmsegmentation')
    add_settings_argument(parser)
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='all of them unless given'
    )
    parser.add_argument('--out', help='table to write, .md, .csv or .json')
    return parser.parse_args(argv)


SPLITS = ('train', 'val', 'test')


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Look through each data set once, print what is wrong, and write the table."""
    args = parse_args(argv)
    if args.out:
        check_ending(args.out, TABLES)
    cfg = read_config(args.config, args.cfg_options)
    datasets = list_datasets(cfg, args.splits)
    if not datasets:
        raise ConfigError(f'{args.config} has no data of {", ".join(args.splits)}.')
    rows = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for name, dataset, split in datasets:
            faults, num_images = look_through(dataset, split, name, cfg.get('model') or {})
            rows += make_rows(f'{name}, {num_images} images', faults)
    rows += compare_classes(cfg, args.splits)
    note = f'Faults in the data of {args.config}.'
    print(f'{note}\n\n{format_table(rows, COLUMNS)}')
    if args.out:
        write_table(rows, COLUMNS, note, args.out)
    sys.exit(any(row['severity'] in ('fatal', 'fault') for row in rows))


def compare_classes(cfg: Config, splits: Sequence[str]) -> list[dict]:
    """Compare the classes of all data sets; makes a row if they differ."""
    faults = Faults()
    try:
        check_classes(cfg, splits)
    except ConfigError as error:
        faults.add(OTHER_CLASSES, error)
    return make_rows('all data', faults) if faults.counts else []


def list_datasets(cfg, splits):
    """List the data sets of a config, each once, however many splits have it.

    Args:
        cfg (Config): The config.
        splits (Sequence[str]): Which splits.

    Returns:
        list[tuple[str, dict, str]]: For each its name, its config, and the first split that has it.
    """
    listed = {}
    for split in splits:
        dataloader = cfg.get(f'{split}_dataloader')
        for dataset in find_datasets(dataloader.dataset) if dataloader else ():
            config = dataset.to_dict()
            # What differs between training and evaluation is not what is on the disk.
            others = ('filter_cfg', 'pipeline', 'test_mode')
            files = {key: config[key] for key in config if key not in others}
            names, _, _ = listed.setdefault(repr(files), ([], config, split))
            names.append(split)
    return [('+'.join(names), config, split) for names, config, split in listed.values()]


def look_through(dataset: dict, split: str, name: str, model: dict) -> tuple[Faults, int]:
    """Look through one data set; shows progress.

    Args:
        dataset: Its config.
        split: What it is for.
        name: What to call it.
        model: Config of the model that is to use it.

    Returns:
        What is wrong, and how many images were looked at.
    """
    faults, entries = Faults(), []
    try:
        if reads_coco(dataset):
            faults, images = look_at_coco(dataset, split)
        else:
            entries = list_entries(dataset, split)
            images = [(entry['img_path'], None) for entry in entries if entry.get('img_path')]
    # What a data set raises depends on its library.
    except Exception as error:
        faults.add(NO_LAYOUT, one_line(error))
        return faults, 0
    num_classes, ignored = count_classes(model)
    labelled = [entry for entry in entries if 'gt_label' in entry]
    paths = [entry.get('img_path') for entry in labelled]
    labels = [np.asarray(entry['gt_label']).tolist() for entry in labelled]
    for example in find_wrong_labels(paths, labels, num_classes):
        faults.add(WRONG_LABEL, example)
    seg_maps = [entry for entry in entries if entry.get('seg_map_path')]
    pipeline = dataset.get('pipeline') or []
    load = find_step(pipeline, 'LoadImageFromFile') or {}
    load_map = find_step(pipeline, 'LoadAnnotations')
    color_type = load.get('color_type', 'color')
    in_channels = (model.get('backbone') or {}).get('in_channels', 3)
    backend = None if load_map is None else load_map.get('imdecode_backend', 'pillow')

    def look_at_image(image):
        return [(kind, image[0]) for kind in find_image_faults(*image, color_type, in_channels)]

    def look_at_seg_map(entry):
        return find_seg_map_faults(entry, num_classes, ignored, backend)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = chain(pool.map(look_at_image, images), pool.map(look_at_seg_map, seg_maps))
        title = f'{name}: {len(images)} images'
        for pairs in track(found, title, len(images) + len(seg_maps)):
            for kind, example in pairs:
                faults.add(kind, example)
    return faults, len(images)


def look_at_coco(dataset, split):
    """Read the annotation file of a COCO data set, and find what is wrong with it.

    Args:
        dataset (dict): Config of a ``CocoDataset``.
        split (str): What it is for.

    Returns:
        tuple[Faults, list]: What is wrong, and the images with their annotated sizes.
    """
    root = dataset.get('data_root') or ''
    content = read_coco(Path(root, dataset['ann_file']), loads_masks(dataset))
    faults = find_coco_faults(content, list_classes(dataset))
    if split != 'test' and not content.annotations:
        faults.add(NOTHING_TO_LEARN, 'no annotations')
    folder = Path(root, (dataset.get('data_prefix') or {}).get('img') or '')
    images = [
        (str(folder / image.file_name), (image.height, image.width)) for image in content.images
    ]
    return faults, images


def list_entries(dataset: dict, split: str) -> list[dict]:
    """List what a data set of any library tells of each image.

    Args:
        dataset: Its config.
        split: What it is for.

    Returns:
        Entries that may have ``img_path``, not where images are within other files, as those of
        CIFAR, ``seg_map_path`` and ``gt_label``.
    """
    with refuse_empty_datasets(split):
        built = DATASETS.build({**dataset, 'pipeline': []})
    return [built.get_data_info(index) for index in range(len(built))]


def make_rows(data, faults):
    """Make the rows of one data set, the gravest first.

    Args:
        data (str): Which it is of.
        faults (Faults): What is wrong.

    Returns:
        list[dict]: A row a kind of fault, one that says so if there is none.
    """
    common = dict(data=data)
    rows = [
        common
        | dict(
            fault=kind.name,
            count=faults.counts[kind],
            severity=kind.severity,
            consequence=kind.consequence,
            examples=', '.join(faults.examples[kind]),
        )
        for severity in ('fatal', 'fault', 'note')
        for kind in faults.of(severity)
    ]
    return rows or [common | dict(fault='none', severity='ok')]


COLUMNS = dict(
    data=('data', '{}'),
    severity=('', '{}'),
    count=('count', '{:d}'),
    fault=('what', '{}'),
    consequence=('in training', '{}'),
    examples=('such as', '{}'),
)
