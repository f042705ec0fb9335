"""Pascal VOC: an XML file for each image, and lists of the images of each split."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from xml.etree import ElementTree

from mmevit.datasets.faults import Faults

from .files import SPLITS, Files
from .labels import LabelledData, Shape, Size, check_size, sorted_classes
from .matching import read_list
from .reading import read_label_files

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find(files: Files) -> list[PurePosixPath]:
    """List the XML files."""
    return files.ending('.xml')


def read(files: Files, label_files: Sequence[PurePosixPath]) -> LabelledData:
    """Read the data, with splits from ``ImageSets/Main``, else by folder."""
    faults = Faults()
    splits = read_splits(files, faults)
    parse = partial(parse_xml, faults=faults)
    images = read_label_files(files, label_files, parse, faults, splits)
    return LabelledData(files.root, sorted_classes(images), images, faults)


def parse_xml(content: bytes, size: Size, place: str, faults: Faults) -> Iterator[Shape]:
    """Parse the objects of an XML file.

    Corners are pixels counted from 1. Like mmdet's ``XMLDataset``, 1 is subtracted from all four;
    unlike there, fractions are kept. Difficult objects are ignored.
    """
    root = ElementTree.fromstring(content)
    annotated = [float(root.findtext(f'size/{side}') or 0) for side in ('height', 'width')]
    check_size(annotated, size, place, faults)
    for item in root.iterfind('object'):
        sides = [float(item.findtext(f'bndbox/{side}', '')) - 1 for side in CORNERS]
        is_difficult = int(item.findtext('difficult') or 0) > 0
        label = item.findtext('name', '').strip()
        if not label:
            raise ValueError('an object without a name')
        yield Shape(label, (sides[0], sides[1], sides[2], sides[3]), is_ignored=is_difficult)


def read_splits(
    files: Files, faults: Faults, task: str = 'Main'
) -> dict[str, list[PurePosixPath]] | None:
    """Read the lists of images in ``ImageSets/Main`` or of another task, None if there are none."""
    lists: defaultdict[str, list[PurePosixPath]] = defaultdict(list)
    for path in files.ending('.txt'):
        if path.match(f'ImageSets/{task}/*.txt'):
            lists[path.stem].append(path)
    if 'train' not in lists and 'trainval' in lists:
        lists['train'] = lists['trainval']
    splits = {
        split: [image for path in lists[split] for image in read_list(files, path, split, faults)]
        for split in SPLITS
        if split in lists
    }
    return {split: images for split, images in splits.items() if images} or None
