"""Generate data from scikit-learn's 1,797 handwritten digits."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmevit.utils.errors import shorten
from mmevit.utils.progress import show_progress

from .formats.masks import encode_pixels, measure_mask

CLASSES = tuple(str(digit) for digit in range(10))
NUM_VAL_DIGITS = 360
# Lists the generated files, one per line: only a folder with no other files is replaced.
MARKER = '.mmevit-digits'
# Images, float (n, 8, 8) from 0 to 1, and their labels, int (n,).
Digits = tuple[np.ndarray, np.ndarray]


def prepare_digits(
    root: str | Path,
    num_train: int = 600,
    num_val: int = 160,
    image_size: int = 192,
    seed: int = 0,
    force: bool = False,
) -> None:
    """Generate data for detection, segmentation and classification.

    The same arguments give the same bytes. Training and validation images share no digit. The
    folder is written atomically::

        root/annotations/instances_{train,val}.json   COCO: boxes, masks, areas
        root/{train,val}/000001.png                   scenes
        root/segments/{train,val}/000001.png          class of each pixel: 0 background, 1 digit 0
        root/classification/{train,val}/7/0001.png    one digit per image, a folder per class
        root/.mmevit-digits                           list of these files

    Args:
        root: Output folder.
        num_train: Number of training scenes, at least 1.
        num_val: Number of validation scenes, at least 1.
        image_size: Height and width of a scene in pixels, at least 64.
        seed: Seed of the split and the scenes.
        force: Whether to replace data that this function wrote.

    Raises:
        FileExistsError: If the folder exists and ``force`` is False, or if it contains any file
            that this function did not write.
        ValueError: If ``image_size``, ``num_train`` or ``num_val`` is too small.

    Example:
        >>> prepare_digits('data/digits')  # doctest: +SKIP
    """
    if image_size < 64:
        raise ValueError(f'image_size is {image_size}. Pass at least 64 pixels.')
    if num_train < 1 or num_val < 1:
        raise ValueError(
            f'num_train is {num_train} and num_val is {num_val}. Pass at least 1 each.'
        )
    with atomic_folder(Path(root), force) as folder:
        train, val = split_digits(seed)
        for split, digits, num_scenes in (('train', train, num_train), ('val', val, num_val)):
            write_class_folders(folder / 'classification' / split, *digits)
            write_scenes(folder, split, digits, num_scenes, image_size, seed)
        (folder / MARKER).write_text('\n'.join(list_files(folder)))


@contextlib.contextmanager
def atomic_folder(root: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder, which replaces ``root`` if the block succeeds."""
    check_replaceable(root, force)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f'.{root.name}-') as scratch:
        new, old = Path(scratch, 'new'), Path(scratch, 'old')
        new.mkdir()
        yield new
        try:
            if root.exists():
                root.rename(old)
            new.rename(root)
        except BaseException:
            if old.exists() and not root.exists():
                old.rename(root)
            raise


def check_replaceable(root: Path, force: bool) -> None:
    """Raise FileExistsError unless ``root`` may be replaced."""
    if root.is_file():
        raise FileExistsError(f'{root} is a file. Pass another folder.')
    files = list_files(root)
    if not files:
        return
    marker = root / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f'{root} was not written by prepare_digits.py ({MARKER} is missing). Pass another '
            'folder, or delete this one yourself.'
        )
    if others := sorted({*files} - {MARKER, *marker.read_text().splitlines()}):
        raise FileExistsError(
            f'{root} contains {shorten(others)}, which prepare_digits.py did not write. Move your '
            'files, or pass another folder.'
        )
    if not force:
        raise FileExistsError(f'{root} already exists. Pass --force to replace it.')


def list_files(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders, links included, relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_symlink() or not path.is_dir()
    )


def split_digits(seed: int) -> tuple[Digits, Digits]:
    """Split the digits into training and validation, stratified by class."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            'The digits are part of scikit-learn, which is not installed. Run pip install '
            'scikit-learn.'
        ) from error
    data: Any = load_digits()
    options: Any = dict(test_size=NUM_VAL_DIGITS, stratify=data.target, random_state=seed)
    # The stubs of scikit-learn do not tell arrays from lists.
    parts: Any = train_test_split(data.images / 16, data.target, **options)
    train_digits, val_digits, train_labels, val_labels = parts
    return (train_digits, train_labels), (val_digits, val_labels)


def write_class_folders(folder: Path, digits: np.ndarray, labels: np.ndarray) -> None:
    """Write digits (n, 8, 8) as 32x32 grayscale images into class folders."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        image = Image.fromarray(to_uint8(enlarge(digit, 32)))
        image.save(folder / CLASSES[label] / f'{index:04d}.png')


def write_scenes(
    folder: Path, split: str, digits: Digits, num_scenes: int, image_size: int, seed: int
) -> None:
    """Write the scenes of a split, their annotations and segmentation maps."""
    # Seeded by the split too, so that its scenes do not depend on the size of the other split.
    rng = np.random.default_rng([seed, split == 'val'])
    (folder / split).mkdir()
    (folder / 'segments' / split).mkdir(parents=True)
    images, annotations = [], []
    for image_id in show_progress(range(1, num_scenes + 1), f'digits, {split}'):
        scene, segments, instances = draw_scene(rng, *digits, image_size)
        file_name = f'{image_id:06d}.png'
        Image.fromarray(scene).save(folder / split / file_name)
        Image.fromarray(segments).save(folder / 'segments' / split / file_name)
        images.append(dict(id=image_id, file_name=file_name, height=image_size, width=image_size))
        for instance in instances:
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **instance))
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations').mkdir(exist_ok=True)
    (folder / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def draw_scene(
    rng: np.random.Generator, digits: np.ndarray, labels: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Draw at least three bright, disjoint digits on a dark background.

    Returns:
        The scene, uint8 (size, size, 3), its segmentation map, uint8 (size, size), and a COCO
        annotation without ids for each digit.
    """
    scene = draw_background(rng, image_size)
    segments = np.zeros((image_size, image_size), dtype=np.uint8)
    taken = np.zeros((image_size, image_size), dtype=bool)
    instances = []
    num_tries = rng.integers(8, 25)
    while num_tries > 0 or len(instances) < 3:
        num_tries -= 1
        index = rng.integers(len(digits))
        size = int(image_size * rng.uniform(0.18, 0.4))
        top, left = rng.integers(0, image_size - size, 2)
        window = np.s_[top : top + size, left : left + size]
        if taken[window].any():
            continue
        taken[window] = True
        opacity = enlarge(digits[index], size)[..., None]
        color = rng.uniform(150, 255, 3)
        scene[window] = scene[window] * (1 - opacity) + color * opacity
        mask = np.zeros_like(taken)
        mask[window] = opacity[..., 0] > 0.5
        category_id = int(labels[index]) + 1
        segments[mask] = category_id
        instances.append(dict(category_id=category_id, **describe_mask(mask)))
    return to_uint8(scene / 255), segments, instances


def draw_background(rng: np.random.Generator, image_size: int) -> np.ndarray:
    """Draw a gradient of two dark colors with noise, (size, size, 3)."""
    start, end = rng.uniform(0, 110, (2, 3))
    ramp = np.linspace(0, 1, image_size)
    angle = rng.uniform(0, np.pi / 2)
    position = np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None, :]
    position = (position / position.max())[..., None]
    noise = rng.normal(0, 8, (image_size, image_size, 3))
    return start * (1 - position) + end * position + noise


def describe_mask(mask: np.ndarray) -> dict:
    """Return the COCO annotation of a non-empty mask, bool (h, w)."""
    # Run lengths rather than polygons, since digits have holes.
    code = encode_pixels(mask)
    height, width = mask.shape
    area, (left, top, right, bottom) = measure_mask(code, (height, width))
    return dict(
        bbox=[left, top, right - left, bottom - top], area=area, iscrowd=0, segmentation=code
    )


def enlarge(digit: np.ndarray, size: int) -> np.ndarray:
    """Enlarge a digit (8, 8) bicubically to (size, size), values 0 to 1."""
    image = Image.fromarray(digit.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).clip(0, 1)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Scale an array from [0, 1] to integers in [0, 255]."""
    return (values * 255).round().clip(0, 255).astype(np.uint8)
