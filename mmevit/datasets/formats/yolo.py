"""YOLO as Ultralytics has it: ``data.yaml``, and a text file for each image."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mmevit.datasets.faults import Faults
from mmevit.utils.errors import ConfigError, one_line

from .files import ORDER, Files
from .labels import MISSING_IMAGE, LabelledData, Shape, outline
from .reading import read_label_files

# Files of class names, one a line, for data without data.yaml.
NAME_FILES = ('classes.txt', 'obj.names')
# Text files that are not labels start with one of these.
OTHERS = ('classes', 'readme', 'licen', 'requirements', 'train.', 'val.', 'test.')


def is_found(files: Files) -> bool:
    """Whether there are class names: ``data.yaml``, ``classes.txt`` or ``obj.names``."""
    return find_data_yaml(files) is not None or find_name_file(files) is not None


def read(files: Files) -> LabelledData:
    """Read the data, with splits from ``data.yaml``, else by folder."""
    faults = Faults()
    data_yaml = find_data_yaml(files)
    content = {} if data_yaml is None else read_yaml(files.root / data_yaml)
    classes = read_names(files, content)
    splits = None if data_yaml is None else find_splits(files, data_yaml, content, faults)
    label_files = [
        path for path in files.ending('.txt') if not path.name.lower().startswith(OTHERS)
    ]
    parse = partial(parse_labels, classes=classes, has_keypoints='kpt_shape' in content)
    images = read_label_files(files, label_files, parse, faults, splits, keep_unlabelled=True)
    return LabelledData(files.root, tuple(classes.values()), images, faults)


def find_data_yaml(files: Files) -> PurePosixPath | None:
    """Find the highest YAML file with class names."""
    paths = sorted(files.ending('.yaml', '.yml'), key=lambda path: len(path.parts))
    return next((path for path in paths if 'names' in read_yaml(files.root / path)), None)


def find_name_file(files: Files) -> PurePosixPath | None:
    """Find the first text file of class names."""
    return next((path for path in files.paths if path.name in NAME_FILES), None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file, as an empty dict if it has other content."""
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path} is not valid YAML ({one_line(error)}). Correct it.') from error
    return content if isinstance(content, dict) else {}


def read_names(files: Files, content: Mapping[str, Any]) -> dict[int, str]:
    """Read the class names by number, which need not be consecutive."""
    names = content.get('names')
    if names is None and (path := find_name_file(files)):
        names = (files.root / path).read_text(encoding='utf-8').split('\n')
        names = [name.strip() for name in names if name.strip()]
    pairs = names.items() if isinstance(names, dict) else enumerate(names or ())
    classes = {int(number): str(name) for number, name in sorted(pairs)}
    if len(set(classes.values())) < max(len(classes), 1):
        raise ConfigError(
            f'The class names of {files.root} are {list(classes.values())}. Give each class a name '
            'of its own in names of data.yaml.'
        )
    return classes


def find_splits(
    files: Files, data_yaml: PurePosixPath, content: Mapping[str, Any], faults: Faults
) -> dict[str, list[PurePosixPath]] | None:
    """Find the images of the folders and lists that ``data.yaml`` names, None if it names none."""
    splits: dict[str, list[PurePosixPath]] = {}
    for split in ORDER:
        entries = content.get(split) or content.get('valid' if split == 'val' else split) or ()
        for entry in [entries] if isinstance(entries, str) else entries:
            folders = (str(data_yaml.parent), str(content.get('path') or ''), '')
            place = find_place(files, str(entry), folders)
            if place is not None:
                splits.setdefault(split, []).extend(find_listed(files, place, faults))
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
            path = Path(root, folder, name).resolve()
            if path.is_relative_to(root) and path.exists():
                return PurePosixPath(path.relative_to(root).as_posix())
    return None


def find_listed(files: Files, place: PurePosixPath, faults: Faults) -> Iterator[PurePosixPath]:
    """Find the images below a folder, or those in a text file."""
    if place.suffix != '.txt':
        yield from (path for path in files.images if path.is_relative_to(place))
        return
    for line in (files.root / place).read_text(encoding='utf-8').splitlines():
        found = files.find_images(line.strip(), place)
        if len(found) == 1:
            yield found[0]
        elif line.strip():
            faults.add(MISSING_IMAGE, f'{place}: {line.strip()}')


def parse_labels(
    path: Path, size: tuple[int, int], classes: Mapping[int, str], has_keypoints: bool
) -> Iterator[Shape]:
    """Parse a label file: a class number and a box or a polygon a line, in fractions of the image.

    A box is given by its centre, width and height; what follows it are keypoints. A polygon has
    three points or more.
    """
    height, width = size
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
        if not line.strip():
            continue
        index, *values = map(float, line.split())
        if int(index) not in classes:
            raise ConfigError(
                f'{path}, line {number}, has class {index:g}, but the names are '
                f'{dict(classes)}. Complete names in data.yaml.'
            )
        if has_keypoints:
            values = values[:4]
        if len(values) % 2 or len(values) < 4:
            raise ValueError(f'line {number} has {len(values)} values after the class')
        if max(map(abs, values)) > 2:
            raise ValueError(f'line {number} is in pixels, not in fractions of the image')
        label = classes[int(index)]
        if len(values) > 4:
            yield outline(label, [[v * (height if i % 2 else width) for i, v in enumerate(values)]])
        else:
            x, y, w, h = (v * side for v, side in zip(values, (width, height) * 2, strict=True))
            yield Shape(label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
