"""Keep splits apart, and hold out images for validation."""

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmevit.utils.errors import ConfigError

from .files import ORDER
from .labels import IN_TWO_SPLITS, LabelledData, LabelledImage
from .reading import show_progress

# Different bits, of 64, of two images that are nearly the same.
MAX_DISTANCE = 8


def complete_splits(data: LabelledData, val_fraction: float, seed: int = 0) -> LabelledData:
    """Remove images from training that are also in another split, and hold out some if none are.

    Args:
        data: The data; its faults are extended.
        val_fraction: Fraction of the training images that are held out without a split ``val``.
        seed: Seed of the choice.

    Raises:
        ConfigError: If there are too few images.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f'The fraction for validation is {val_fraction}, not between 0 and 1.')
    splits = {split or 'train': images for split, images in data.splits.items()}
    splits = {split: splits[split] for split in ORDER if splits.get(split)}
    remove_shared(data, splits)
    train = splits.get('train', [])
    if len(train) < 2:
        raise ConfigError(
            f'{data.root} has {len(train)} labelled images for training that are in no other '
            'split, but needs two or more. Add images, or rename the folders of the splits.'
        )
    if 'val' not in splits:
        splits['train'], splits['val'] = hold_out(data.root, train, val_fraction, seed)
    return replace(data, splits={split: splits[split] for split in ORDER if split in splits})


def remove_shared(data: LabelledData, splits: dict[str, list[LabelledImage]]) -> None:
    """Remove images, by content, from splits before another split that has them too."""
    sizes = Counter(
        os.path.getsize(data.root / image.path) for images in splits.values() for image in images
    )

    def identify(image: LabelledImage) -> str:
        path = data.root / image.path
        # Most images differ in size from all others, and need not be read.
        is_alone = sizes[os.path.getsize(path)] == 1
        return image.path if is_alone else hashlib.sha1(path.read_bytes()).hexdigest()

    later: set[str] = set()
    for split in reversed(splits):
        names = [identify(image) for image in splits[split]]
        pairs = list(zip(splits[split], names, strict=True))
        splits[split] = [image for image, name in pairs if name not in later]
        data.faults.add_all((IN_TWO_SPLITS, image.path) for image, name in pairs if name in later)
        later |= set(names)


def hold_out(
    root: Path, images: Sequence[LabelledImage], fraction: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Split images into kept and held-out ones.

    Images that follow each other by number and look alike, such as those of a video, stay together.
    A series of more images than are held out is cut.
    """
    count = min(max(round(fraction * len(images)), 1), len(images) - 1)
    groups = [
        group[start : start + count]
        for group in group_series(root, images)
        for start in range(0, len(group), count)
    ]
    random.Random(seed).shuffle(groups)
    held_out: list[LabelledImage] = []
    for group in groups:
        if len(held_out) + len(group) <= count:
            held_out += group
    chosen = {image.path for image in held_out}
    return [image for image in images if image.path not in chosen], sorted(
        held_out, key=lambda image: image.path
    )


def group_series(root: Path, images: Iterable[LabelledImage]) -> list[list[LabelledImage]]:
    """Group images that follow each other by number and look alike."""
    groups: list[list[LabelledImage]] = []
    last_prefix, last_hash = None, np.zeros(0)
    for image in show_progress(sorted(images, key=split_name)):
        prefix, difference_hash = split_name(image)[0], compute_hash(root / image.path)
        follows = prefix == last_prefix
        if follows and np.count_nonzero(difference_hash != last_hash) <= MAX_DISTANCE:
            groups[-1].append(image)
        else:
            groups.append([image])
        last_prefix, last_hash = prefix, difference_hash
    return groups


def split_name(image: LabelledImage) -> tuple[str, int]:
    """Split the path of an image into what precedes its last number, and the number.

    Example:
        >>> split_name(LabelledImage('day 2/frame_0042_left.png', 48, 64, ()))
        ('day 2/frame_', 42)
    """
    found = re.fullmatch(r'(.*?)(\d+)[^\d/]*', image.path.rpartition('.')[0])
    return (found[1], int(found[2])) if found else (image.path, 0)


def compute_hash(path: Path) -> np.ndarray:
    """Return 64 bits: where a pixel of the 9 x 8 thumbnail is darker than the next."""
    with Image.open(path) as image:
        image.draft('L', (64, 64))  # JPEG files are decoded at a fraction of their size
        thumbnail = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX))
    return (thumbnail[:, 1:] > thumbnail[:, :-1]).ravel()
