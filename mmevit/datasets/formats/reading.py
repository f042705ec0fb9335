"""Reading of formats that have a label file for each image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import track

from mmevit.datasets.faults import Faults
from mmevit.datasets.image_faults import image_size
from mmevit.utils.errors import ConfigError, one_line

from .files import Files, split_of
from .labels import (
    BACKGROUND,
    NO_IMAGE,
    NO_LABELS,
    NO_SPLIT,
    NOT_UNIQUE,
    UNREADABLE_IMAGE,
    UNREADABLE_LABELS,
    LabelledImage,
    Shape,
    repair_shapes,
)

Paths = Sequence[PurePosixPath]
# Returns the objects in a label file, given the height and the width of the image.
Parse = Callable[[Path, tuple[int, int]], Iterable[Shape]]


def read_label_files(
    files: Files,
    label_files: Paths,
    parse: Parse,
    faults: Faults,
    splits: Mapping[str, Paths] | None = None,
    keep_unlabelled: bool = False,
) -> dict[str, list[LabelledImage]]:
    """Read the label file of each image, and return the labelled images by split.

    Args:
        files: The data.
        label_files: The label files, which have the names of their images.
        parse: Reads one; what it raises, except ConfigError, leaves the image out.
        faults: Is extended by what is left out or repaired.
        splits: The images by split, by default by folder.
        keep_unlabelled: Whether an image without a label file has no objects, or is left out.
    """
    label_file_of = match_label_files(files, label_files, faults)
    splits = split_by_folder(files.images) if splits is None else splits
    listed = {path for paths in splits.values() for path in paths}
    faults.add_all((NO_SPLIT, path) for path in label_file_of if path not in listed)
    images: dict[str, list[LabelledImage]] = {split: [] for split in splits}
    for split, path in show_progress([(name, path) for name in splits for path in splits[name]]):
        label_file = label_file_of.get(path)
        if label_file is None and not keep_unlabelled:
            faults.add(NO_LABELS, path)
        elif image := read_image(files, path, label_file, parse, faults):
            images[split].append(image)
    return images


def read_image(
    files: Files,
    path: PurePosixPath,
    label_file: PurePosixPath | None,
    parse: Parse,
    faults: Faults,
) -> LabelledImage | None:
    """Read the objects of an image, none without a label file; None if it is left out."""
    size = image_size(str(files.root / path))
    if size is None:
        faults.add(UNREADABLE_IMAGE, path)
        return None
    try:
        shapes = list(parse(files.root / label_file, size)) if label_file else []
    except ConfigError:
        raise
    # Each parser raises errors of its own.
    except Exception as error:
        faults.add(UNREADABLE_LABELS, f'{label_file}: {one_line(error)}')
        return None
    shapes = tuple(repair_shapes(shapes, size, str(label_file), faults))
    if not shapes:
        faults.add(BACKGROUND, path)
    return LabelledImage(str(path), *size, shapes)


def show_progress(items: Sequence[Any]) -> Iterable[Any]:
    """Show the progress of reading on stderr."""
    return track(items, 'Reading labels', transient=True)


def match_label_files(
    files: Files, label_files: Paths, faults: Faults
) -> dict[PurePosixPath, PurePosixPath]:
    """Find the label file of each image."""
    found = {}
    for label_file in label_files:
        images = files.find_images(label_file.stem, label_file)
        if len(images) == 1 and images[0] not in found:
            found[images[0]] = label_file
        else:
            faults.add(NOT_UNIQUE if images else NO_IMAGE, label_file)
    return found


def split_by_folder(images: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Split images by the names of their folders; those of no split are left out, if not all."""
    splits: dict[str, list[PurePosixPath]] = {}
    for path in images:
        splits.setdefault(split_of(*path.parts[:-1]), []).append(path)
    if len(splits) > 1:
        splits.pop('', None)
    return splits
