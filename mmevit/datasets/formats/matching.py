"""Match label files, annotation entries and list entries to image files."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import PurePosixPath
from typing import NamedTuple

from mmevit.datasets.faults import Faults, FaultType

from .files import Files, normalize, split_of
from .labels import MISSING_IMAGE, NOT_UNIQUE

Paths = Sequence[PurePosixPath]
# How well a folder fits: common folders with the name, the same split, whether it is for images,
# closeness to the file.
Score = tuple[int, bool, bool, int]
NO_SCORE = (0, False, False, 0)
# The folders in a name, the folder of the file with it, and the split.
Target = tuple[tuple[str, ...], PurePosixPath, str | None]
# Usual names of folders of labels, also of masks, which have the names of images.
LABEL_FOLDERS = (
    *('ann_dir', 'annotations', 'ground_truth', 'groundtruth', 'gt', 'label', 'labels', 'mask'),
    *('masks', 'segmentation', 'segmentations', 'segments'),
)
# With endings such as PNG, Aug and Visualization.
LABEL_PREFIXES = ('segmentationclass', 'segmentationobject')
IMAGE_FOLDERS = ('image', 'images', 'img', 'img_dir', 'imgs', 'jpegimages')
# Those of images in their place.
COUNTERPARTS = dict(labels='images', annotations='images', Annotations='JPEGImages')
# All of these are the same in comparisons of folders.
CONTENTS = ('annotations', 'images', 'jpegimages', 'labels')


class Reference(NamedTuple):
    """The name of an image, with or without folders and suffix, and the file that has it."""

    name: str
    file: PurePosixPath

    def __str__(self) -> str:
        """Return the path of a label file of this name, or that of a list and the name."""
        return str(self.file) if self.name == self.file.stem else f'{self.file}: {self.name}'


def read_list(files: Files, path: PurePosixPath, split: str, faults: Faults) -> Paths:
    """Find the images in a list of names or paths, which may be without suffix."""
    lines = files.read_text(path).splitlines()
    references = [Reference(line.strip(), path) for line in lines if line.strip()]
    images = []
    found = find_images(files, references, split)
    for reference, (_, candidates) in zip(references, found, strict=True):
        if len(candidates) == 1:
            images += candidates
        else:
            faults.add(NOT_UNIQUE if candidates else MISSING_IMAGE, reference)
    return images


def assign_images(
    files: Files,
    references: Sequence[Reference],
    faults: Faults,
    missing: FaultType,
    split: str | None = None,
) -> tuple[dict[PurePosixPath, int], set[PurePosixPath]]:
    """Find the image of each reference, of which no two may have the same.

    Args:
        files: The data.
        references: The names of the images.
        faults: Is extended by unclear references, and by those without an image.
        missing: The fault of those without an image.
        split: See :func:`find_images`.

    Returns:
        The indices of the references by image, and the images that remain unclear.
    """
    found = find_images(files, references, split)
    best: dict[PurePosixPath, Score] = {}
    for score, images in found:
        for image in images:
            best[image] = max(score, best.get(image, score))
    claims: defaultdict[PurePosixPath, list[int]] = defaultdict(list)
    unclear: set[PurePosixPath] = set()
    for index, (score, images) in enumerate(found):
        # Other references fit the other images better.
        left = [image for image in images if best[image] == score]
        if len(images) == 1 and left:
            claims[left[0]].append(index)
        else:
            unclear.update(left)
            faults.add(NOT_UNIQUE if left else missing, references[index])
    unclear.update(image for image, indices in claims.items() if len(indices) > 1)
    assigned = {image: indices[0] for image, indices in claims.items() if image not in unclear}
    faults.add_all(
        (NOT_UNIQUE, references[index])
        for image, indices in claims.items()
        if image in unclear
        for index in indices
    )
    return assigned, unclear


def find_images(
    files: Files, references: Sequence[Reference], split: str | None = None
) -> list[tuple[Score, Paths]]:
    """Find the image of each reference, or several if it is not clear which is meant.

    Of images with the same name, the one whose folders fit best is meant. If they fit worse than
    those of most others in the same file or folder, and names repeat, the image is missing.

    Args:
        files: The data.
        references: The names of the images.
        split: The split of the images, by default that of the folders of each reference.
    """
    rank = cache(partial(rank_folders, files))
    found: list[tuple[Score, Paths]] = []
    targets: list[Target] = []
    for name, file in references:
        *folders, last = normalize(name).replace('\\', '/').split('/')
        targets.append((tuple(folders), file.parent, split))
        found.append(find_best(files.images_by_name.get(last, {}), targets[-1], rank))
    counts: defaultdict[Target, Counter[Score]] = defaultdict(Counter)
    for target, (score, images) in zip(targets, found, strict=True):
        counts[target][score] += bool(images)
    usual = {
        target: max(count, key=lambda score: (count[score], score))
        for target, count in counts.items()
    }
    repeat = any(len(folders) > 1 for folders in files.images_by_name.values())

    def is_meant(score: Score, usual: Score) -> bool:
        return score >= usual if repeat else score[0] >= usual[0]

    return [
        (score, images if is_meant(score, usual[target]) else [])
        for target, (score, images) in zip(targets, found, strict=True)
    ]


def find_best(
    images: Mapping[PurePosixPath, Paths],
    target: Target,
    rank: Callable[[Target], Sequence[tuple[Score, Paths]]],
) -> tuple[Score, Paths]:
    """Choose among images with the same name, by folder, with the folders by rank."""
    folders, place, split = target
    if len(images) > 1 and not folders:
        # No other can fit better.
        nearest = find_counterpart(place)
        if nearest in images and not is_label_folder(nearest):
            return score_folder(nearest, (), place, split), images[nearest]
    if len(images) > 1:
        for score, best in rank(target):
            if found := [path for folder in best if folder in images for path in images[folder]]:
                return score, found
    for folder, paths in images.items():
        return score_folder(folder, *target), paths
    return NO_SCORE, []


def rank_folders(files: Files, target: Target) -> list[tuple[Score, Paths]]:
    """List the folders with images by how well they fit, the best first."""
    ranks: defaultdict[Score, list[PurePosixPath]] = defaultdict(list)
    for folder in files.image_folders:
        ranks[score_folder(folder, *target)].append(folder)
    return sorted(ranks.items(), reverse=True)


def score_folder(
    folder: PurePosixPath, wanted: tuple[str, ...], place: PurePosixPath, split: str | None
) -> Score:
    """Score how well a folder fits the folders in a name, a split, and the folder of a file.

    Example:
        >>> folder = PurePosixPath('images/train')
        >>> score_folder(folder, (), PurePosixPath('labels/train'), None)
        (0, True, True, 6)
        >>> score_folder(folder, ('train',), PurePosixPath('annotations'), 'val')
        (1, False, True, 2)
    """
    split = folder_split(place) if split is None else split
    is_same = split != '' and folder_split(folder) == split
    common = 0
    if wanted:
        common = count_common([normalize(part) for part in folder.parts[::-1]], wanted[::-1])
    near, other = comparable_parts(folder), comparable_parts(place)
    closeness = count_common(near, other) + count_common(near[::-1], other[::-1])
    return common, is_same, not is_label_folder(folder), closeness


@cache
def folder_split(folder: PurePosixPath) -> str:
    """Return the split that the names of a path mean."""
    return split_of(*folder.parts)


@cache
def is_label_folder(folder: PurePosixPath) -> bool:
    """Whether a folder is usually for labels; the last name that tells it counts.

    Example:
        >>> is_label_folder(PurePosixPath('segmentation/images/train'))
        False
    """
    for part in reversed(folder.parts):
        name = part.lower()
        if name in LABEL_FOLDERS or name.startswith(LABEL_PREFIXES):
            return True
        if name in IMAGE_FOLDERS:
            return False
    return False


@cache
def find_counterpart(folder: PurePosixPath) -> PurePosixPath:
    """Return the usual folder of the images for a folder of labels.

    Example:
        >>> find_counterpart(PurePosixPath('labels/train')).as_posix()
        'images/train'
    """
    return PurePosixPath(*(COUNTERPARTS.get(part, part) for part in folder.parts))


@cache
def comparable_parts(folder: PurePosixPath) -> tuple[str, ...]:
    """Return the root and the names of a path, in which images and labels have the same name."""
    return (
        '',
        *('*' if part.lower() in CONTENTS else normalize(part) for part in folder.parts),
    )


def count_common(parts: Sequence[str], others: Sequence[str]) -> int:
    """Count the parts at the start that are the same."""
    count = 0
    for part, other in zip(parts, others, strict=False):
        if part != other:
            break
        count += 1
    return count
