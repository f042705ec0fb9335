"""Pascal VOC: an XML file for each image, and lists of the images of each split."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from mmevit.datasets.faults import Faults

from .files import ORDER, Files
from .labels import MISSING_IMAGE, LabelledData, Shape, sorted_classes
from .reading import read_label_files


def is_found(files: Files) -> bool:
    """Whether there are XML files."""
    return bool(files.ending('.xml'))


def read(files: Files) -> LabelledData:
    """Read the data, with splits from ``ImageSets/Main``, else by folder."""
    faults = Faults()
    splits = read_split_lists(files, faults)
    images = read_label_files(files, files.ending('.xml'), parse_xml, faults, splits)
    return LabelledData(files.root, sorted_classes(images), images, faults)


def parse_xml(path: Path, size: tuple[int, int]) -> Iterator[Shape]:
    """Parse the objects of an XML file.

    Corners are pixels counted from 1. Like mmdet's ``XMLDataset``, 1 is subtracted from all four;
    unlike there, fractions are kept. Difficult objects are ignored.
    """
    for item in ElementTree.parse(path).getroot().iterfind('object'):
        sides = [float(item.findtext(f'bndbox/{side}', '')) - 1 for side in CORNERS]
        is_difficult = int(item.findtext('difficult') or 0) > 0
        label = item.findtext('name', '').strip()
        if not label:
            raise ValueError('an object without a name')
        yield Shape(label, (sides[0], sides[1], sides[2], sides[3]), is_ignored=is_difficult)


CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_split_lists(files: Files, faults: Faults) -> dict[str, list[PurePosixPath]] | None:
    """Read the lists of images in ``ImageSets/Main``, None if there are none."""
    lists = {path.stem: path for path in files.ending('.txt') if path.match('ImageSets/Main/*.txt')}
    if 'train' not in lists and 'trainval' in lists:
        lists['train'] = lists['trainval']
    splits: dict[str, list[PurePosixPath]] = {}
    for split in [split for split in ORDER if split in lists]:
        for name in Path(files.root, lists[split]).read_text(encoding='utf-8').splitlines():
            found = files.find_images(name.strip(), lists[split])
            if len(found) == 1:
                splits.setdefault(split, []).append(found[0])
            elif name.strip():
                faults.add(MISSING_IMAGE, f'{lists[split]}: {name.strip()}')
    return splits or None
