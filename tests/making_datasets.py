"""Data sets of a few random images, in the layouts that the real ones have when unpacked.

The labels cover the real range, from the first class to the last.
"""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from timm.data import ImageNetInfo

ORIENTATION = 0x0112  # an EXIF tag, of which 6 says that the camera was turned
NUM_TRAIN, NUM_TEST = 5, 3


def random_image(rng, sides):
    """Draw an image of smooth colours with finer structure on top, its sides in a range."""
    size = tuple(int(side) for side in rng.integers(*sides, 2))
    pixels = np.zeros((*size[::-1], 3))
    for cells, weight in ((int(rng.integers(2, 9)), 0.6), (16, 0.25), (64, 0.15)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        pixels += weight * np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    return Image.fromarray(pixels.astype(np.uint8))


def write_jpeg(path, rng, sides=(21, 72)):
    """Write a random image, now and then of grey or CMYK, or turned by its EXIF orientation."""
    mode = rng.choice(['RGB', 'L', 'CMYK'], p=[0.85, 0.1, 0.05])
    exif = Image.Exif()
    if rng.random() < 0.1:
        exif[ORIENTATION] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    random_image(rng, sides).convert(mode).save(
        path,
        quality=int(rng.integers(40, 98)),
        subsampling=int(rng.integers(0, 3)),
        exif=exif,
    )


def spread_labels(num_classes, count):
    """Spread labels, counted from 0, evenly from the first to the last class."""
    return np.linspace(0, num_classes - 1, count).round().astype(int).tolist()


def make_imagenet(root, num_val=NUM_TEST, sides=(21, 72), seed=0):
    """Write ImageNet-1K: a folder for every class in ``train/`` and ``val/``, most empty."""
    rng = np.random.default_rng(seed)
    synsets = sorted(ImageNetInfo().label_names())
    for split, count in (('train', NUM_TRAIN), ('val', num_val)):
        for synset in synsets:
            Path(root, split, synset).mkdir(parents=True)
        for i, label in enumerate(spread_labels(1000, count), 1):
            synset = synsets[label]
            name = f'{synset}_{i}' if split == 'train' else f'ILSVRC2012_val_{i:08}'
            write_jpeg(Path(root, split, synset, f'{name}.JPEG'), rng, sides)


def make_cifar10(root):
    """Write CIFAR-10 as its archive unpacks: five training batches, here of an image each."""
    folder = Path(root, 'cifar-10-batches-py')
    labels = dict(train=spread_labels(10, NUM_TRAIN), test=spread_labels(10, NUM_TEST))
    rng = np.random.default_rng(1)
    for i, label in enumerate(labels['train'], 1):
        write_batch(folder / f'data_batch_{i}', rng, labels=[label])
    write_batch(folder / 'test_batch', rng, labels=labels['test'])
    write_pickle(folder / 'batches.meta', dict(label_names=[str(i) for i in range(10)]))


def make_cifar100(root):
    """Write CIFAR-100 as its archive unpacks, with a fine and a coarse label for each image."""
    folder = Path(root, 'cifar-100-python')
    rng = np.random.default_rng(2)
    for split, count in (('train', NUM_TRAIN), ('test', NUM_TEST)):
        fine, coarse = spread_labels(100, count), spread_labels(20, count)
        write_batch(folder / split, rng, fine_labels=fine, coarse_labels=coarse)
    write_pickle(folder / 'meta', dict(fine_label_names=[str(i) for i in range(100)]))


def write_batch(path, rng, **labels):
    """Write images as rows of 1024 red, 1024 green and 1024 blue values, with their labels."""
    count = len(next(iter(labels.values())))
    images = [np.asarray(random_image(rng, (32, 33))) for _ in range(count)]
    data = np.stack(images).transpose(0, 3, 1, 2).reshape(count, 3072)
    names = [f'{path.name}_{i}.png' for i in range(count)]
    write_pickle(path, dict(data=data, filenames=names, batch_label=path.name, **labels))


def write_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def accept_cifar(monkeypatch, dataset, root):
    """Have mmpretrain's CIFAR class expect the check sums of the files that were written."""

    def md5(name):
        return hashlib.md5(Path(root, dataset.base_folder, name).read_bytes()).hexdigest()

    for attribute in ('train_list', 'test_list'):
        names = [name for name, _ in getattr(dataset, attribute)]
        monkeypatch.setattr(dataset, attribute, [[name, md5(name)] for name in names])
    meta = {**dataset.meta, 'md5': md5(dataset.meta['filename'])}
    monkeypatch.setattr(dataset, 'meta', meta)


def make_cars(root):
    """Write Stanford Cars: two folders of images, and a devkit with MATLAB struct arrays."""
    rng = np.random.default_rng(3)
    corners = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
    fields = [(name, object) for name in (*corners, 'class', 'fname')]
    Path(root, 'devkit').mkdir(parents=True)
    for split, count, file in (
        ('train', NUM_TRAIN, 'cars_train_annos'),
        ('test', NUM_TEST, 'cars_test_annos_withlabels'),
    ):
        annotations = np.empty((1, count), dtype=fields)
        for i, label in enumerate(spread_labels(196, count)):
            name = f'{i + 1:05}.jpg'
            write_jpeg(Path(root, f'cars_{split}', name), rng)
            annotations[0, i] = (*np.uint8([1, 1, 20, 20]), np.uint8(label + 1), name)
        savemat(Path(root, 'devkit', f'{file}.mat'), dict(annotations=annotations))


def make_flowers(root):
    """Write Oxford Flowers: numbered images, their labels, and which numbers are in which split."""
    rng = np.random.default_rng(4)
    labels = [*spread_labels(102, NUM_TRAIN), *spread_labels(102, NUM_TEST)]
    for i in range(len(labels)):
        write_jpeg(Path(root, 'jpg', f'image_{i + 1:05}.jpg'), rng)
    savemat(Path(root, 'imagelabels.mat'), dict(labels=np.uint8([labels]) + 1))
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint16)[None]
    train, val, test = np.split(numbers, [NUM_TRAIN - 2, NUM_TRAIN], axis=1)
    savemat(Path(root, 'setid.mat'), dict(trnid=train, valid=val, tstid=test))


def make_pets(root):
    """Write Oxford-IIIT Pets: images named after the breed, and lists of image and class."""
    rng = np.random.default_rng(5)
    Path(root, 'annotations').mkdir(parents=True)
    for split, count in (('trainval', NUM_TRAIN), ('test', NUM_TEST)):
        lines = []
        for label in spread_labels(37, count):
            name = f'Breed_{label + 1}_{split}'
            write_jpeg(Path(root, 'images', f'{name}.jpg'), rng)
            lines.append(f'{name} {label + 1} 1 1\n')  # class, species, breed within the species
        Path(root, 'annotations', f'{split}.txt').write_text(''.join(lines))
