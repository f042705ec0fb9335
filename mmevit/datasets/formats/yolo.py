"""YOLO as Ultralytics has it: ``data.yaml``, and a text file for each image."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmevit.datasets.faults import Faults
from mmevit.utils.errors import ConfigError, one_line, shorten

from .files import SPLITS, Files
from .labels import MISSING_IMAGE, LabelledData, Shape, Size, outline
from .matching import read_list
from .reading import read_label_files

# Files of class names, one a line, for data without data.yaml.
NAME_FILES = ('classes.txt', 'obj.names')
# Text files that are not labels, up to the first dot.
OTHERS = re.compile(r'(autosplit_.*|classes|licen[cs]e|readme|requirements|test|train|val)\.', re.I)


def find(files: Files) -> list[PurePosixPath]:
    """Find the file of class names: ``data.yaml``, or all ``classes.txt`` next to labels."""
    if path := find_data_yaml(files):
        return [path]
    if not any(map(files.has_image, files.ending('.txt'))):
        return []
    return [path for path in files.paths if path.name in NAME_FILES]


def find_data_yaml(files: Files) -> PurePosixPath | None:
    """Find the highest YAML file with class names."""
    paths = [
        path
        for path in files.ending('.yaml', '.yml')
        if re.search(rb'^[\'"]?names[\'"]?\s*:', (files.root / path).read_bytes(), re.MULTILINE)
    ]
    depth = min((len(path.parts) for path in paths), default=0)
    highest = [path for path in paths if len(path.parts) == depth]
    named = [path for path in highest if path.stem == 'data'] or highest
    if len(named) > 1:
        raise ConfigError(
            f'{files.root} has several files with class names: {shorten(named)}. Name one of them '
            'data.yaml.'
        )
    return named[0] if named else None


def read(files: Files, label_files: Sequence[PurePosixPath]) -> LabelledData:
    """Read the data, with splits from ``data.yaml``, else by folder."""
    faults = Faults()
    name_file = label_files[0]
    splits, has_keypoints = None, False
    if name_file.name in NAME_FILES:
        classes = read_name_files(files, label_files)
    else:
        content = read_yaml(files, name_file)
        classes = number_names(files, name_file, content['names'])
        splits = find_splits(files, name_file, content, faults)
        has_keypoints = 'kpt_shape' in content
    texts = [
        path
        for path in files.ending('.txt')
        if files.has_image(path) or not OTHERS.match(path.name)
    ]
    parse = partial(parse_labels, classes=classes, has_keypoints=has_keypoints)
    images = read_label_files(files, texts, parse, faults, splits, keep_unlabelled=True)
    return LabelledData(files.root, tuple(classes.values()), images, faults)


def read_name_files(files: Files, paths: Sequence[PurePosixPath]) -> dict[int, str]:
    """Read the class names by number. LabelImg writes one file per folder, some incomplete.

    Raises:
        ConfigError: If a number has different names.
    """
    found = {}
    for path in paths:
        names = [name.strip() for name in files.read_text(path).splitlines()]
        found[path] = [name for name in names if name]
    longest = max(paths, key=lambda path: len(found[path]))
    for path, names in found.items():
        if names != found[longest][: len(names)]:
            raise ConfigError(
                f'{files.root / longest} and {files.root / path} have different classes for the '
                'same numbers. Renumber the labels, or convert each folder on its own.'
            )
    return number_names(files, longest, found[longest])


def read_yaml(files: Files, path: PurePosixPath) -> dict[str, Any]:
    """Read a YAML file with class names; all values are strings, such as a class named no."""
    try:
        content = yaml.load(files.read_text(path), yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f'{files.root / path} is not valid YAML ({one_line(error)}). Correct it.'
        ) from error
    return content


def number_names(files: Files, path: PurePosixPath, names: Any) -> dict[int, str]:
    """Return the class names by number, which need not be consecutive."""
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        if isinstance(names, str):
            raise ValueError
        classes = {int(number): str(name) for number, name in pairs}
    except ValueError:
        classes = {}
    if not classes or len(set(classes.values())) < len(classes):
        raise ConfigError(
            f'The class names in {files.root / path} are {names}. Write a list of different names, '
            'or a dict of numbers and names.'
        )
    return dict(sorted(classes.items()))


def find_splits(
    files: Files, data_yaml: PurePosixPath, content: Mapping[str, Any], faults: Faults
) -> dict[str, list[PurePosixPath]] | None:
    """Find the images of the folders and lists that ``data.yaml`` names, None if it names none."""
    splits: dict[str, list[PurePosixPath]] = {}
    parent, base = str(data_yaml.parent), str(content.get('path') or '')
    folders = (parent, f'{parent}/{base}', base, '')
    for split in SPLITS:
        entries = content.get(split) or content.get('valid' if split == 'val' else split) or ()
        for entry in [entries] if isinstance(entries, str) else entries:
            place = find_place(files, str(entry), folders)
            if place is not None:
                splits.setdefault(split, []).extend(list_images(files, place, split, faults))
            elif split == 'train':
                raise ConfigError(
                    f'{files.root / data_yaml} has {entry!r} as training images, which is not in '
                    f'{files.root}. Correct the path, or pass the folder that contains both.'
                )
            else:
                faults.add(MISSING_IMAGE, f'{data_yaml}: {entry}')
    return splits or None


def find_place(files: Files, entry: str, folders: Sequence[str]) -> PurePosixPath | None:
    """Find a folder or a list of ``data.yaml`` in the data, relative to one of some folders."""
    root = files.root.resolve()
    # Exports of Roboflow have one ../ too many.
    for name in (entry, entry.removeprefix('../')):
        for folder in folders:
            path = Path(root, folder, name)
            # Folders that are links are listed under their own names.
            for place in (Path(os.path.normpath(path)), path.resolve()):
                if place.is_relative_to(root) and place.exists():
                    return PurePosixPath(place.relative_to(root).as_posix())
    return None


def list_images(
    files: Files, place: PurePosixPath, split: str, faults: Faults
) -> Sequence[PurePosixPath]:
    """List the images below a folder, or those in a text file."""
    if (files.root / place).is_file():
        return read_list(files, place, split, faults)
    return [path for path in files.images if path.is_relative_to(place)]


def parse_labels(
    content: bytes, size: Size, place: str, classes: Mapping[int, str], has_keypoints: bool
) -> Iterator[Shape]:
    """Parse a label file: a class number and a box or a polygon a line, in fractions of the image.

    A box is given by its centre, width and height; what follows it are keypoints. A polygon has
    three points or more.
    """
    height, width = size
    for number, line in enumerate(content.decode('utf-8-sig').splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, *values = map(float, line.split())
        except ValueError:
            raise ValueError(f'line {number} is {line.strip()!r}') from None
        if index not in classes:
            raise ConfigError(
                f'{place}, line {number}, has the class {index:g}, but names has the classes '
                f'{shorten(classes)}. Complete names.'
            )
        if has_keypoints:
            values = values[:4]
        if len(values) % 2 or len(values) < 4:
            raise ValueError(f'line {number} has {len(values)} values after the class')
        if any(abs(value) > 2 for value in values):
            raise ValueError(f'line {number} is in pixels, not in fractions of the image')
        label = classes[int(index)]
        if len(values) > 4:
            yield outline(label, [[v * (height if i % 2 else width) for i, v in enumerate(values)]])
        else:
            x, y, w, h = (v * side for v, side in zip(values, (width, height) * 2, strict=True))
            yield Shape(label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
