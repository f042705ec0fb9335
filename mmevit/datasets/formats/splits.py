"""Keep splits apart, and hold out images for validation."""

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mmevit.utils.errors import ConfigError
from mmevit.utils.progress import show_progress

from .files import SPLITS
from .labels import IN_TWO_SPLITS, LabelledData, LabelledImage

# The path of an image before its last number, the number, and what follows it.
Name = tuple[str, int, str]
# Different bits, of 64, of two images that are nearly the same.
MAX_DISTANCE = 8


def complete_splits(data: LabelledData, val_fraction: float) -> LabelledData:
    """Remove images that are also in a later split, and hold out some for validation.

    A single split is used for training and validation, whatever its name.

    Args:
        data: The data; its faults are extended.
        val_fraction: Fraction of the training images that are held out without a split ``val``.

    Raises:
        ConfigError: If there are too few images.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f'The fraction for validation is {val_fraction}, not between 0 and 1.')
    splits = {split or 'train': images for split, images in data.splits.items()}
    splits = {split: splits[split] for split in SPLITS if splits.get(split)}
    if len(splits) == 1:
        splits = dict(train=next(iter(splits.values())))
    remove_shared(data, splits)
    train = splits.get('train', [])
    if len(train) < 2:
        raise ConfigError(
            f'{data.root} has {len(train)} labelled images for training that are in no other '
            'split, but needs two or more. Add images, or rename the folders of the splits.'
        )
    if 'val' not in splits:
        images = {image.path: image for image in train}
        kept, held_out = hold_out(data.root, list(images), val_fraction, seed=0)
        splits['train'], splits['val'] = (
            [images[path] for path in part] for part in (kept, held_out)
        )
    return replace(data, splits={split: splits[split] for split in SPLITS if split in splits})


def remove_shared(data: LabelledData, splits: dict[str, list[LabelledImage]]) -> None:
    """Remove images, by content, from splits before another split that has them too."""
    sizes = {
        image.path: os.path.getsize(data.root / image.path)
        for images in splits.values()
        for image in images
    }
    counts = Counter(
        size for images in splits.values() for size in {sizes[image.path] for image in images}
    )

    def identify(image: LabelledImage) -> str:
        # Most images differ in size from those of other splits, and need not be read.
        if counts[sizes[image.path]] == 1:
            return image.path
        return hashlib.sha1((data.root / image.path).read_bytes()).hexdigest()

    later: set[str] = set()
    for split in reversed(splits):
        names = [identify(image) for image in splits[split]]
        pairs = list(zip(splits[split], names, strict=True))
        splits[split] = [image for image, name in pairs if name not in later]
        data.faults.add_all((IN_TWO_SPLITS, image.path) for image, name in pairs if name in later)
        later |= set(names)


def hold_out(
    root: Path, paths: Sequence[str], fraction: float, seed: int
) -> tuple[list[str], list[str]]:
    """Split the paths of images, of which there must be two, into kept and held-out ones.

    Images that follow each other by number and look alike, such as those of a video, stay together.
    A series of more images than are held out is cut.
    """
    count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
    groups = [
        group[start : start + count]
        for group in group_series(root, paths)
        for start in range(0, len(group), count)
    ]
    random.Random(seed).shuffle(groups)
    held_out: set[str] = set()
    for group in groups:
        if len(held_out) + len(group) <= count:
            held_out.update(group)
    return [path for path in paths if path not in held_out], sorted(held_out)


def group_series(root: Path, paths: Sequence[str]) -> list[list[str]]:
    """Group images that follow each other by number and look alike, and copies of an image."""
    ordered = sorted(paths, key=split_name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda path: compute_hash(root / path), ordered)
        hashes = list(show_progress(found, 'Comparing images', len(ordered)))
    entries = []
    names: dict[object, Name] = {}
    for path, bits in zip(ordered, hashes, strict=True):
        size = os.path.getsize(root / path)
        # A copy is sorted next to the first image of its content.
        name = names.setdefault(path if bits is None else (bits, size), split_name(path))
        entries.append((name, bits, path))
    entries.sort(key=lambda entry: entry[0])
    groups: list[list[str]] = []
    last_name, last_bits = None, None
    for name, bits, path in entries:
        if name == last_name or (last_name and is_series(last_name, last_bits, name, bits)):
            groups[-1].append(path)
        else:
            groups.append([path])
        last_name, last_bits = name, bits
    return groups


def is_series(name: Name, bits: int | None, next_name: Name, next_bits: int | None) -> bool:
    """Whether two images have names that only differ from their numbers on, and look alike."""
    if name[0] != next_name[0] or bits is None or next_bits is None:
        return False
    return (bits ^ next_bits).bit_count() <= MAX_DISTANCE


def split_name(path: str) -> Name:
    """Split the path of an image at its last number, without suffix and without Roboflow's.

    Roboflow appends a hash to the name, of which augmented images have several.

    Example:
        >>> split_name('day 2/frame_0042_left.png')
        ('day 2/frame_', 42, '_left')
        >>> split_name('7_jpg.rf.06af9.jpg')
        ('', 7, '_jpg')
    """
    name = re.sub(r'\.rf\.\w+$', '', path.rpartition('.')[0])
    found = re.fullmatch(r'(.*?)(\d+)([^\d/]*)', name)
    return (found[1], int(found[2]), found[3]) if found else (name, 0, '')


def compute_hash(path: Path) -> int | None:
    """Return 64 bits: where a pixel of the 9 x 8 thumbnail is darker than the next.

    None for a corrupt image.
    """
    try:
        with Image.open(path) as image:
            image.draft('L', (64, 64))  # JPEG files are decoded at a fraction of their size
            thumbnail = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX))
    # What a decoder raises depends on the format.
    except Exception:
        return None
    bits = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1])
    return int.from_bytes(bits.tobytes(), 'big')
