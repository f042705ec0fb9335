"""Segmentation maps: for each image another one, whose values or colors are classes."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mmevit.datasets.faults import Faults
from mmevit.utils.errors import ConfigError, shorten

from .files import Files, normalize
from .labels import IGNORED_PIXELS, LabelledData, LabelledImage, Shape, Size
from .masks import encode_pixels, measure_mask
from .matching import IMAGE_FOLDERS, is_label_folder
from .reading import read_label_files
from .voc import read_splits

# Formats that keep values.
SUFFIXES = ('.bmp', '.png', '.tif', '.tiff')
# What maps have at the end of their names or folders, in addition to those of their images. The
# letters of CamVid's maps are also those of left and right images.
ENDING = re.compile(r'([-_](gt|labels?|masks?|seg|segmentation)|annot)$', re.IGNORECASE)
ENDING_IN_FOLDER = re.compile(f'_l$|{ENDING.pattern}', re.IGNORECASE)
# VOC's maps of objects are next to those of classes.
OBJECT_FOLDER = 'segmentationobject'
# More values are those of pictures, or of maps that were resized or compressed.
MAX_VALUES = 256
MAX_CLASSES = 64
# Often ignored: white, and VOC's color of outlines.
WHITE, OUTLINES = '255', '#e0e0c0'
# Files of class names: a line for each value from 0, or lines with values or colors and names.
LISTS = ('classes.txt', 'class_names.txt')
NAME_FILES = (*LISTS, 'labelmap.txt', 'label_colors.txt', 'class_dict.csv', '_classes.csv')
VALUES = r'(?P<values>\d+(?:[\s,]+\d+[\s,]+\d+)?)'
VALUE_FIRST = re.compile(VALUES + r'[\s,:]+(?P<name>[^\d,:][^,:]*)')
NAME_FIRST = re.compile(r'(?P<name>[^,:\t]+?)\s*[,:\t]\s*' + VALUES + '(?::.*)?')


def find(files: Files) -> dict[PurePosixPath, str]:
    """Find the maps, if there are any of images, with the names of their images."""
    maps = match_maps(files)
    names = {normalize(path.stem) for path in set(files.images) - set(maps)}
    matched = [path for path, name in maps.items() if normalize(name) in names]
    is_data = bool(matched) and all(is_map(files.root / path) for path in matched[:3])
    return maps if is_data else {}


def match_maps(files: Files) -> dict[PurePosixPath, str]:
    """Return what could be maps, and the names of their images, without suffix."""
    candidates = files.ending(*SUFFIXES)
    in_folders = {path for path in candidates if is_map_folder(path.parent)}
    stems = {normalize(path.stem) for path in set(files.images) - in_folders}
    names = {}
    for path in candidates:
        ending = ENDING_IN_FOLDER if path in in_folders else ENDING
        name = ending.sub('', path.stem)
        if path in in_folders and normalize(path.stem) in stems:
            names[path] = path.stem
        elif path in in_folders or (name != path.stem and normalize(name) in stems):
            names[path] = name
    return names


def is_map_folder(folder: PurePosixPath) -> bool:
    """Whether a folder is for maps of classes, by its name."""
    for part in reversed(folder.parts):
        if ENDING.search(part) or is_label_folder(PurePosixPath(part)):
            return not part.lower().startswith(OBJECT_FOLDER)
        if part.lower() in IMAGE_FOLDERS:
            return False
    return False


def is_map(path: Path) -> bool:
    """Whether an image could be a map: it has one channel or few colors."""
    try:
        with Image.open(path) as image:
            return len(image.getbands()) == 1 or bool(image.convert('RGB').getcolors(MAX_VALUES))
    # What a decoder raises depends on the format. Reading reports the file.
    except Exception:
        return True


def read(files: Files, maps: Mapping[PurePosixPath, str]) -> LabelledData:
    """Read the data, with splits from ``ImageSets/Segmentation``, else by folder."""
    faults = Faults()
    known = read_names(files)
    # Pictures of labels are not images either.
    others = [path for path in files.images if is_label_folder(path.parent)]
    images = Files(files.root, excluded=[*maps, *others])
    by_color = any(key.startswith('#') for key in known) or have_several_palettes(
        files.root / path for path in maps
    )
    splits = read_label_files(
        images,
        list(maps),
        partial(parse_map, by_color=by_color),
        faults,
        read_splits(images, faults, 'Segmentation'),
        name_of=maps.__getitem__,
    )
    return name_classes(files.root, splits, known, faults)


def name_classes(
    root: Path,
    splits: Mapping[str, Sequence[LabelledImage]],
    known: Mapping[str, str],
    faults: Faults,
) -> LabelledData:
    """Name the values in images by those that are known, and leave out ignored ones."""
    found = [image for own in splits.values() for image in own]
    values = {shape.label for image in found for shape in image.shapes}
    names = name_values(root, values, known)
    occurring = {names[value] for value in values & names.keys()}
    if len(occurring) < 2:
        raise ConfigError(
            f'The segmentation maps in {root} have a single class: {shorten(occurring)}. Give '
            'other pixels another value, or name the value 255 (white) if it is a class.'
        )
    faults.add_all(
        (IGNORED_PIXELS, image.path)
        for image in found
        if any(shape.label not in names for shape in image.shapes)
    )
    named = {split: [rename(image, names) for image in own] for split, own in splits.items()}
    return LabelledData(root, tuple(dict.fromkeys(names.values())), named, faults, is_semantic=True)


def have_several_palettes(paths: Iterable[Path]) -> bool:
    """Whether the same index has different colors in different maps."""
    longest: list[int] = []
    for path in paths:
        try:
            with Image.open(path) as image:
                palette = image.getpalette() or []
        # What a decoder raises depends on the format. Reading reports the file.
        except Exception:
            continue
        shorter, longer = sorted((palette, longest), key=len)
        if longer[: len(shorter)] != shorter:
            return True
        longest = longer
    return False


def parse_map(content: bytes, size: Size, place: str, by_color: bool) -> Iterator[Shape]:
    """Parse a map: for each value, all its pixels.

    The value of an equal red, green and blue is that of grey, such as ``'7'``, that of another
    color is ``'#rrggbb'``. The values of a palette image are its indices, or its colors.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.size != size[::-1]:
            raise ValueError(f'not {size[1]} x {size[0]} pixels, as its image')
        if image.mode == 'P' and not by_color or image.mode[0] == 'I':
            pixels = np.asarray(image).astype(np.int64)
        elif image.mode in ('1', 'L'):
            pixels = np.asarray(image.convert('L')).astype(np.int64)
        elif image.mode in ('P', 'RGB') or image.getextrema()[-1] == (255, 255):
            red, green, blue = np.moveaxis(np.asarray(image.convert('RGB')).astype(np.int64), 2, 0)
            is_grey = (red == green) & (green == blue)
            # Colors are above all grey values.
            pixels = np.where(is_grey, red, (1 << 24) + (red << 16) + (green << 8) + blue)
        else:
            raise ValueError(f'mode {image.mode}, or transparent pixels')
    values = np.unique(pixels)
    if len(values) > MAX_VALUES:
        raise ValueError(f'{len(values)} values, which are not classes')
    for value in values.tolist():
        code = encode_pixels(pixels == value)
        label = str(value) if value < 1 << 24 else f'#{value - (1 << 24):06x}'
        yield Shape(label, measure_mask(code, size)[1], code)


def read_names(files: Files) -> dict[str, str]:
    """Read the class names by value or color, empty if there is no file of names."""
    paths = [path for path in files.paths if path.name in NAME_FILES]
    found = [read_name_file(files, path) for path in paths]
    for path, names in zip(paths, found, strict=True):
        if names != found[0]:
            raise ConfigError(
                f'{files.root / paths[0]} and {files.root / path} have different classes. Remove '
                'one of them.'
            )
    return found[0] if found else {}


def read_name_file(files: Files, path: PurePosixPath) -> dict[str, str]:
    """Read the class names in a file."""
    lines = [line.strip() for line in files.read_text(path).splitlines()]
    lines = [line for line in lines if line and line[0] != '#']
    pairs = [parse_name(line) for line in lines]
    if path.name in LISTS and not all(pairs):
        return {str(value): name for value, name in enumerate(lines)}
    # The first line may be a title.
    if wrong := [line for line, pair in zip(lines[1:], pairs[1:], strict=True) if pair is None]:
        raise ConfigError(
            f'{files.root / path} has the line {wrong[0]!r}. Write a name and a value, or a name '
            'and red, green and blue.'
        )
    return dict(filter(None, pairs))


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
        ConfigError: If the values do not tell the classes.
    """
    if values == {'0', WHITE} and WHITE not in names and len(names) <= 2:
        background, foreground = ['background', *(names.values() or ['foreground'])][-2:]
        return {'0': background, WHITE: foreground}
    if values == {'0', '1'} and not names:
        return {'0': 'background', '1': 'foreground'}
    classes = values - {WHITE, OUTLINES}
    if names:
        if unnamed := sorted(classes - names.keys()):
            raise ConfigError(
                f'The segmentation maps in {root} have values without a name: {shorten(unnamed)}. '
                'Complete the file of class names.'
            )
        return dict(names)
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f'The segmentation maps in {root} have {len(classes)} values. If all are classes, add '
            'classes.txt with a name for each value. Maps that were resized or compressed have '
            'other values too: save them again.'
        )
    if WHITE in values and not all(key.isdecimal() and int(key) < MAX_CLASSES for key in classes):
        raise ConfigError(
            f'The segmentation maps in {root} have white pixels, which can be a class or ignored. '
            f'Name the classes in {NAME_FILES[2]}, with lines such as "sky:255,255,255".'
        )
    return {key: key for key in sorted(classes, key=lambda key: (len(key), key))}


def rename(image: LabelledImage, names: Mapping[str, str]) -> LabelledImage:
    """Name the classes in an image, without ignored ones."""
    shapes = [
        replace(shape, label=names[shape.label]) for shape in image.shapes if shape.label in names
    ]
    return replace(image, shapes=shapes)
