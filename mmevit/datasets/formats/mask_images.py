"""Segmentation maps: for each image another one, whose values or colors are classes."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mmevit.datasets.faults import Faults
from mmevit.utils.errors import ConfigError, shorten

from .files import Files, normalize
from .labels import LabelledData, LabelledImage, Shape, Size
from .masks import encode_pixels, measure_mask
from .matching import is_label_folder
from .reading import read_label_files
from .voc import read_splits

# Formats that keep values.
SUFFIXES = ('.bmp', '.png', '.tif', '.tiff')
# What maps have at the end of their names or folders, in addition to those of their images.
ENDING = re.compile(r'[-_](gt|l|labels?|masks?|seg|segmentation)$', re.IGNORECASE)
# VOC's maps of objects are next to those of classes.
OBJECT_FOLDER = 'SegmentationObject'
# More values are those of pictures, or of maps that were resized or compressed.
MAX_VALUES = 256
MAX_CLASSES = 64
# White is a class if it is the only value with 0. Else it is ignored, as VOC's outlines are.
WHITE, OUTLINES = '255', '#e0e0c0'
# Files of class names: a line for each value from 0, or lines with values or colors and names.
LISTS = ('classes.txt', 'class_names.txt')
NAME_FILES = (*LISTS, 'labelmap.txt', 'label_colors.txt', 'class_dict.csv', '_classes.csv')
VALUES = r'(?P<values>\d+(?:[\s,]+\d+[\s,]+\d+)?)'
VALUE_FIRST = re.compile(VALUES + r'[\s,:]+(?P<name>\D.*)')
NAME_FIRST = re.compile(r'(?P<name>.+?)\s*[,:\t]\s*' + VALUES + '(?::.*)?')


def find(files: Files) -> list[PurePosixPath]:
    """List the maps, which have the names of images."""
    named = [
        path
        for path in files.ending(*SUFFIXES)
        if is_map_folder(path.parent) or path.stem != image_name(path)
    ]
    others = {normalize(path.stem) for path in set(files.images) - set(named)}
    maps = [path for path in named if normalize(image_name(path)) in others]
    return maps if all(is_map(files.root / path) for path in maps[:3]) else []


def is_map_folder(folder: PurePosixPath) -> bool:
    """Whether a folder is for maps, by its name."""
    if OBJECT_FOLDER in folder.parts:
        return False
    return is_label_folder(folder) or any(ENDING.search(part) for part in folder.parts)


def image_name(path: PurePosixPath) -> str:
    """Return the name of the image of a map.

    Example:
        >>> image_name(PurePosixPath('masks/cat_1_mask.png'))
        'cat_1'
    """
    return ENDING.sub('', path.stem)


def is_map(path: Path) -> bool:
    """Whether an image could be a map: it has one channel or few colors."""
    try:
        with Image.open(path) as image:
            return len(image.getbands()) == 1 or bool(image.convert('RGB').getcolors(MAX_VALUES))
    # What a decoder raises depends on the format. Reading reports the file.
    except Exception:
        return True


def read(files: Files, label_files: Sequence[PurePosixPath]) -> LabelledData:
    """Read the data, with splits from ``ImageSets/Segmentation``, else by folder."""
    faults = Faults()
    names = read_names(files)
    images = Files(files.root, excluded=label_files)
    splits = read_splits(images, faults, 'Segmentation')
    parse = partial(parse_map, by_color=any(key.startswith('#') for key in names))
    read = read_label_files(images, label_files, parse, faults, splits, name_of=image_name)
    values = {shape.label for split in read.values() for image in split for shape in image.shapes}
    names = name_values(files.root, values, names)
    classes = tuple(dict.fromkeys(names.values()))
    named = {split: [rename(image, names) for image in own] for split, own in read.items()}
    return LabelledData(files.root, classes, named, faults, is_semantic=True)


def parse_map(content: bytes, size: Size, place: str, by_color: bool) -> Iterator[Shape]:
    """Parse a map: for each value, all its pixels.

    The value of an equal red, green and blue is that of grey, such as ``'7'``, that of another
    color is ``'#rrggbb'``. The values of a palette image are its indices, or its colors.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.mode == 'P' and not by_color or image.mode[0] in 'IF':
            pixels = np.asarray(image).astype(np.int64)
        elif image.mode in ('1', 'L'):
            pixels = np.asarray(image.convert('L')).astype(np.int64)
        else:
            red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int64), 2, 0)
            is_grey = (red == green) & (green == blue)
            # Colors are above all grey values.
            pixels = np.where(is_grey, red, (1 << 24) + (red << 16) + (green << 8) + blue)
    values = np.unique(pixels)
    if len(values) > MAX_VALUES:
        raise ValueError(f'{len(values)} values, which are not classes')
    for value in values.tolist():
        code = encode_pixels(pixels == value)
        label = str(value) if value < 1 << 24 else f'#{value - (1 << 24):06x}'
        yield Shape(label, measure_mask(code, size)[1], code)


def read_names(files: Files) -> dict[str, str]:
    """Read the class names by value or color, empty if there is no file of names."""
    paths = [path for name in NAME_FILES for path in files.paths if path.name == name]
    if not paths:
        return {}
    lines = [line.strip() for line in files.read_text(paths[0]).splitlines()]
    lines = [line for line in lines if line and line[0] != '#']
    if paths[0].name in LISTS:
        return {str(value): name for value, name in enumerate(lines)}
    if lines and parse_name(lines[0]) is None:
        del lines[0]  # a title
    if wrong := [line for line in lines if parse_name(line) is None]:
        raise ConfigError(
            f'{files.root / paths[0]} has the line {wrong[0]!r}. Write a name and a value, or a '
            'name and red, green and blue.'
        )
    return dict(filter(None, map(parse_name, lines)))


def parse_name(line: str) -> tuple[str, str] | None:
    """Parse the value or color of a class and its name, in any order; None if there is none.

    Example:
        >>> parse_name('background:0,0,0::'), parse_name('64 128 64 Animal')
        (('0', 'background'), ('#408040', 'Animal'))
        >>> parse_name('sky 2,12,200,7'), parse_name('1, cat'), parse_name('name, r, g, b')
        (('#0cc807', 'sky 2'), ('1', 'cat'), None)
    """
    found = VALUE_FIRST.fullmatch(line) or NAME_FIRST.fullmatch(line)
    if found is None:
        return None
    values = [int(value) for value in re.findall(r'\d+', found['values'])]
    if max(values) > 255:
        return None
    is_grey = len(set(values)) == 1
    return str(values[0]) if is_grey else '#' + bytes(values).hex(), found['name']


def name_values(root: Path, values: set[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each value, also of classes without pixels. Ignored values have none.

    Raises:
        ConfigError: If values have no names although others have, or there are too many.
    """
    if values == {'0', WHITE} and WHITE not in names:
        return {'0': names.get('0', 'background'), WHITE: names.get('1', 'foreground')}
    if values == {'0', '1'} and not names:
        return {'0': 'background', '1': 'foreground'}
    classes = values - {WHITE, OUTLINES}
    if not names and len(classes) <= MAX_CLASSES:
        return {value: value for value in sorted(classes, key=lambda value: (len(value), value))}
    if not names:
        raise ConfigError(
            f'The segmentation maps in {root} have {len(classes)} values, such as they have after '
            'resizing or compression. Save maps with one value for each class, or add classes.txt '
            'with a name for each value.'
        )
    if unnamed := sorted(classes - names.keys()):
        raise ConfigError(
            f'The segmentation maps in {root} have values without a name: {shorten(unnamed)}. '
            'Complete the file of class names.'
        )
    return dict(names)


def rename(image: LabelledImage, names: Mapping[str, str]) -> LabelledImage:
    """Name the classes in an image, without ignored ones."""
    shapes = [
        replace(shape, label=names[shape.label]) for shape in image.shapes if shape.label in names
    ]
    return replace(image, shapes=shapes)
