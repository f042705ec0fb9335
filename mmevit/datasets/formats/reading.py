"""Reading of formats that have a label file for each image."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import PurePosixPath

from mmevit.datasets.faults import Faults
from mmevit.datasets.image_faults import image_size
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.progress import show_progress

from .files import Files, split_of
from .labels import (
    BACKGROUND,
    NO_IMAGE,
    NO_LABELS,
    NO_SPLIT,
    UNREADABLE_IMAGE,
    UNREADABLE_LABELS,
    LabelledImage,
    Shape,
    Size,
    repair_shapes,
)
from .matching import Paths, Reference, assign_images, is_label_folder

# Returns the objects in the content of a label file, given the size of the image, and the path for
# messages.
Parse = Callable[[bytes, Size, str], Iterable[Shape]]


def read_label_files(
    files: Files,
    label_files: Paths,
    parse: Parse,
    faults: Faults,
    splits: Mapping[str, Paths] | None = None,
    keep_unlabelled: bool = False,
    name_of: Callable[[PurePosixPath], str] = attrgetter('stem'),
) -> dict[str, list[LabelledImage]]:
    """Read the label file of each image, and return the labelled images by split.

    Args:
        files: The data.
        label_files: The label files.
        parse: Parses one. After an error other than ConfigError, the image is left out.
        faults: Receives what is left out or repaired.
        splits: The images by split, by default by folder.
        keep_unlabelled: Whether to keep images without a label file as background.
        name_of: Returns the name of the image of a label file, without its suffix.
    """
    references = [Reference(name_of(path), path) for path in label_files]
    indices, unclear = assign_images(files, references, faults, NO_IMAGE)
    if splits is None:
        labelled = [path for path in files.images if path in indices or path in unclear]
        splits = split_by_folder(files.images if keep_unlabelled else labelled)
        if not keep_unlabelled:
            faults.add_all((NO_LABELS, path) for path in sorted(set(files.images) - set(labelled)))
    # Lists may have an image twice.
    splits = {split: list(dict.fromkeys(paths)) for split, paths in splits.items()}
    in_splits = [(split, path) for split, paths in splits.items() for path in paths]
    listed = {path for _, path in in_splits}
    faults.add_all((NO_SPLIT, path) for path in indices if path not in listed)
    # Without any label file, images are unlabelled and not background.
    with_background = [
        split
        for split, paths in splits.items()
        if keep_unlabelled and any(path in indices for path in paths)
    ]
    images: dict[str, list[LabelledImage]] = defaultdict(list)
    for split, path in show_progress(in_splits, 'Reading labels'):
        if path in unclear:
            continue
        label_file = label_files[indices[path]] if path in indices else None
        is_background = split in with_background and not is_label_folder(path.parent)
        if label_file is None and not is_background:
            faults.add(NO_LABELS, path)
        elif image := read_image(files, path, label_file, parse, faults):
            images[split].append(image)
    return dict(images)


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
    shapes, place = [], str(label_file)
    try:
        if label_file is not None:
            shapes = list(parse((files.root / label_file).read_bytes(), size, place))
    except ConfigError:
        raise
    # Each parser raises errors of its own.
    except Exception as error:
        faults.add(UNREADABLE_LABELS, f'{place}: {one_line(error)}')
        return None
    shapes = tuple(repair_shapes(shapes, size, place, faults))
    if not shapes:
        faults.add(BACKGROUND, path)
    return LabelledImage(str(path), *size, shapes)


def split_by_folder(images: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Split images by the names of their folders; next to val or test, the others are for training.

    If there is a folder for training, the others are left out.
    """
    splits: dict[str, list[PurePosixPath]] = {}
    for path in images:
        splits.setdefault(split_of(*path.parts[:-1]), []).append(path)
    if len(splits) > 1 and (others := splits.pop('', None)):
        splits.setdefault('train', others)
    return splits
