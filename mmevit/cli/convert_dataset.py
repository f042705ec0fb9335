"""Convert labels to COCO annotation files or segmentation maps; the images stay where they are."""

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from mmevit.cli.arguments import argument, command, group
from mmevit.cli.check_dataset import COLUMNS, make_rows
from mmevit.datasets.formats import (
    FORMATS,
    LabelledData,
    complete_splits,
    read_labels,
    write_coco,
    write_seg_maps,
)
from mmevit.utils.errors import ConfigError
from mmevit.utils.tables import format_table

# How labelled data are read; shared with the command finetune.
add_format_arguments = group(
    argument('--format', 'format of the labels (default: recognized)', choices=FORMATS),
    argument(
        '--val-fraction',
        'fraction of the training images for validation, without a split of its own (default: 0.2)',
        type=float,
        default=0.2,
    ),
)


@command(
    argument('data', 'folder with images and labels; it is not changed', metavar='IN'),
    argument('out', 'new or empty folder for the converted labels', metavar='OUT'),
    argument(
        '--to',
        'COCO annotation files, or masks: segmentation maps for semantic segmentation',
        choices=['coco', 'masks'],
        default='coco',
    ),
    add_format_arguments,
)
def main(args: Namespace) -> None:
    """Write the labels, and print what is in them and what was left out."""
    if Path(args.out).resolve().is_relative_to(Path(args.data).resolve()):
        raise ConfigError(f'{args.out} is inside the data {args.data}. Choose another folder.')
    if Path(args.out).is_dir() and any(Path(args.out).iterdir()):
        raise ConfigError(f'{args.out} is not empty. Choose another folder.')
    data = read_labels(args.data, args.format)
    if data is None:
        raise ConfigError(
            f'{args.data} contains no labels in the formats {", ".join(FORMATS)}. Pass the folder '
            'with images and label files; YOLO needs data.yaml or classes.txt too.'
        )
    data = complete_splits(data, args.val_fraction)
    settings: dict[str, Any] = dict(data_root=str(data.root.resolve()))
    if args.to == 'coco':
        paths = write_coco(data, args.out)
        settings['data_prefix'] = dict(img='')
    else:
        classes, paths = write_seg_maps(data, args.out)
        settings['data_prefix'] = dict(img_path='', seg_map_path=str(Path(args.out).resolve()))
        settings |= dict(img_suffix='', seg_map_suffix='.png', metainfo=dict(classes=classes))
    print(summarise(data))
    print('\nIn a config, with')
    for name, value in settings.items():
        print(f'    {name}={value!r}')
    for split, path in paths.items():
        print(f'    {split}: ann_file={str(path.resolve())!r}')


def summarise(data: LabelledData) -> str:
    """Format the numbers of images, and of objects or of images with a class, and the faults."""
    columns = dict(name=('', '{}')) | {split: (split, '{:d}') for split in data.splits}
    rows: list[dict] = [
        dict(name='images') | {split: len(images) for split, images in data.splits.items()}
    ]
    counts = {
        split: Counter(shape.label for image in images for shape in image.shapes)
        for split, images in data.splits.items()
    }
    what = 'images with' if data.is_semantic else 'objects'
    for name in data.classes:
        rows.append(dict(name=f'{what}: {name}') | {split: counts[split][name] for split in counts})
    faults = make_rows('labels', data.faults)
    return f'{format_table(rows, columns)}\n\n{format_table(faults, FAULT_COLUMNS)}'


FAULT_COLUMNS = {name: COLUMNS[name] for name in ('count', 'fault', 'consequence', 'examples')}
