"""Data that need no download: scenes made of scikit-learn's 1,797 real handwritten digits."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from mmevit.utils.errors import shorten

CLASSES = tuple(str(digit) for digit in range(10))
NUM_VAL_DIGITS = 360
# Lists the files of a set, one a line: only a folder of these files and no others is replaced.
MARKER = '.mmevit-digits'


def prepare_digits(root, num_train=600, num_val=160, image_size=192, seed=0, force=False):
    """Write digits for detection, instance and semantic segmentation, and classification.

    The same arguments give the same bytes. No digit that is in a training image is in a validation
    image. The folder appears under its name when it is whole, or not at all::

        root/annotations/instances_{train,val}.json   COCO: boxes, masks, areas
        root/{train,val}/000001.png                   scenes
        root/segments/{train,val}/000001.png          a class a pixel: 0 nothing, 1 digit 0, ...
        root/classification/{train,val}/7/0001.png    one digit an image, a folder a class
        root/.mmevit-digits                           list of these files

    Args:
        root (str | Path): Folder to make.
        num_train (int): Number of training scenes, at least 1. Defaults to 600.
        num_val (int): Number of validation scenes, at least 1. Defaults to 160.
        image_size (int): Height and width of a scene in pixels, at least 64. Defaults to 192.
        seed (int): Seed of the split and the scenes. Defaults to 0.
        force (bool): Whether to replace digits that this function wrote. Defaults to False.

    Raises:
        FileExistsError: If the folder exists and ``force`` is False, or if it contains any file
            that this function did not write.
        ValueError: If a scene would be too small for its digits, or there would be none.

    Example:
        >>> prepare_digits('data/digits')  # doctest: +SKIP
    """
    if image_size < 64:
        raise ValueError(f'image_size is {image_size}, but the digits need at least 64 pixels.')
    if num_train < 1 or num_val < 1:
        raise ValueError(
            f'num_train is {num_train} and num_val {num_val}; both must be at least 1.'
        )
    with whole_folder(Path(root), force) as folder:
        splits = split_digits(seed)
        for (split, (digits, labels)), num_scenes in zip(
            splits.items(), (num_train, num_val), strict=True
        ):
            write_class_folders(folder / 'classification' / split, digits, labels)
            write_scenes(folder, split, digits, labels, num_scenes, image_size, seed)
        (folder / MARKER).write_text('\n'.join(list_files(folder)))


@contextlib.contextmanager
def whole_folder(root, force):
    """Give a scratch folder that takes the place of ``root`` when the block ends without error.

    Args:
        root (Path): Folder to make.
        force (bool): Whether to replace it if it is there.

    Yields:
        Path: An empty folder on the same disk.

    Raises:
        FileExistsError: If ``root`` exists and ``force`` is False, or it contains other files than
            the digits.
    """
    check_replaceable(root, force)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f'.{root.name}-') as scratch:
        new = Path(scratch, 'new')
        new.mkdir()
        yield new
        old = Path(scratch, 'old')
        try:
            if root.exists():
                root.rename(old)
            new.rename(root)
        except BaseException:
            if old.exists() and not root.exists():
                old.rename(root)
            raise


def check_replaceable(root: Path, force: bool) -> None:
    """Refuse to replace a folder that contains anything else than digits."""
    if root.is_file():
        raise FileExistsError(f'{root} is a file. Give another folder.')
    files = list_files(root)
    if not files:
        return
    marker = root / MARKER
    if not marker.is_file():
        raise FileExistsError(
            f'{root} was not written by prepare_digits.py (it has no {MARKER}). Give another '
            'folder, or delete this one yourself.'
        )
    if others := sorted({*files} - {MARKER, *marker.read_text().splitlines()}):
        raise FileExistsError(
            f'{root} contains {shorten(others)}, which prepare_digits.py did not write. Move your '
            'files elsewhere, or give another folder.'
        )
    if not force:
        raise FileExistsError(f'{root} already exists. Give --force to replace it.')


def list_files(folder: Path) -> list[str]:
    """List the files in a folder and its subfolders, links included, relative to it."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_symlink() or not path.is_dir()
    )


def split_digits(seed):
    """Split the digits into training and validation, each class in proportion.

    Args:
        seed (int): Seed of the split.

    Returns:
        dict[str, tuple]: For ``'train'`` and ``'val'``, the digits, float (n, 8, 8) from 0 to 1,
        and their labels, int (n,).

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(
            'The digits come with scikit-learn, which is not installed: pip install scikit-learn.'
        ) from error
    data = load_digits()
    train_digits, val_digits, train_labels, val_labels = train_test_split(
        data.images / 16,
        data.target,
        test_size=NUM_VAL_DIGITS,
        stratify=data.target,
        random_state=seed,
    )
    return dict(train=(train_digits, train_labels), val=(val_digits, val_labels))


def write_class_folders(folder, digits, labels):
    """Write every digit as a 32x32 grey image into the folder of its class.

    Args:
        folder (Path): Folder of the split.
        digits (ndarray): (n, 8, 8) from 0 to 1.
        labels (ndarray): (n,).
    """
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for index, (digit, label) in enumerate(zip(digits, labels, strict=True)):
        image = Image.fromarray(to_uint8(enlarge(digit, 32)))
        image.save(folder / CLASSES[label] / f'{index:04d}.png')


def write_scenes(folder, split, digits, labels, num_scenes, image_size, seed):
    """Write the scenes of one split, their COCO annotations and their segments.

    Args:
        folder (Path): Folder of the set.
        split (str): ``'train'`` or ``'val'``.
        digits (ndarray): (n, 8, 8) from 0 to 1.
        labels (ndarray): (n,).
        num_scenes (int): Number of scenes.
        image_size (int): Height and width of a scene.
        seed (int): Seed of the scenes.
    """
    # Seeded by the split too, so that the one does not change with the size of the other.
    rng = np.random.default_rng([seed, split == 'val'])
    (folder / split).mkdir()
    (folder / 'segments' / split).mkdir(parents=True)
    images, annotations = [], []
    for image_id in track(range(1, num_scenes + 1), description=f'digits, {split}'):
        scene, segments, instances = draw_scene(rng, digits, labels, image_size)
        file_name = f'{image_id:06d}.png'
        Image.fromarray(scene).save(folder / split / file_name)
        Image.fromarray(segments).save(folder / 'segments' / split / file_name)
        images.append(dict(id=image_id, file_name=file_name, height=image_size, width=image_size))
        for instance in instances:
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, **instance))
    categories = [dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)]
    annotation_file = folder / 'annotations' / f'instances_{split}.json'
    annotation_file.parent.mkdir(exist_ok=True)
    annotation_file.write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=categories))
    )


def draw_scene(rng, digits, labels, image_size):
    """Draw three or more bright digits, of varying size and colour and apart, on a dark background.

    Args:
        rng (numpy.random.Generator): Source of all choices.
        digits (ndarray): (n, 8, 8) from 0 to 1.
        labels (ndarray): (n,).
        image_size (int): Height and width of the scene.

    Returns:
        tuple[ndarray, ndarray, list[dict]]: The scene, uint8 (image_size, image_size, 3), its
        segments, uint8 (image_size, image_size), and a COCO annotation without ids for each digit.
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
        colour = rng.uniform(150, 255, 3)
        scene[window] = scene[window] * (1 - opacity) + colour * opacity
        mask = np.zeros_like(taken)
        mask[window] = opacity[..., 0] > 0.5
        category_id = int(labels[index]) + 1
        segments[mask] = category_id
        instances.append(dict(category_id=category_id, **describe_mask(mask)))
    return to_uint8(scene / 255), segments, instances


def draw_background(rng, image_size):
    """Draw a gradient between two dark colours, with noise.

    Args:
        rng (numpy.random.Generator): Source of all choices.
        image_size (int): Height and width.

    Returns:
        ndarray: float (image_size, image_size, 3), most of it below 120 of 255.
    """
    start, end = rng.uniform(0, 110, (2, 3))
    ramp = np.linspace(0, 1, image_size)
    angle = rng.uniform(0, np.pi / 2)
    position = np.cos(angle) * ramp[:, None] + np.sin(angle) * ramp[None, :]
    position = (position / position.max())[..., None]
    noise = rng.normal(0, 8, (image_size, image_size, 3))
    return start * (1 - position) + end * position + noise


def describe_mask(mask):
    """Describe a mask as COCO does.

    Args:
        mask (ndarray): bool (h, w), not empty.

    Returns:
        dict: ``bbox`` (x, y, width, height), ``area``, ``iscrowd`` and ``segmentation``, run-length
        encoded, since digits have holes.
    """
    from pycocotools import mask as mask_api

    run_lengths = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(
        bbox=mask_api.toBbox(run_lengths).tolist(),
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(
            size=[int(side) for side in run_lengths['size']],
            counts=run_lengths['counts'].decode('ascii'),
        ),
    )


def enlarge(digit, size):
    """Enlarge a digit (8, 8) bicubically to (size, size), values 0 to 1."""
    image = Image.fromarray(digit.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).clip(0, 1)


def to_uint8(values):
    """Round an array of 0 to 1 to whole numbers of 0 to 255."""
    return (values * 255).round().clip(0, 255).astype(np.uint8)
