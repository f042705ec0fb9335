"""The bad inputs: name, generation and expected outcome of each."""

import json
import math
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmevit.datasets import prepare_digits
from mmevit.models import EfficientViT

ROOT = Path(__file__).parents[3]
DETECTOR = ROOT / 'configs/retinanet_evit_m4_digits.py'
CLASSIFIER = ROOT / 'configs/evit_m0_digits.py'
SEGMENTOR = ROOT / 'configs/semantic-fpn_evit_m4_digits.py'
NAMES = tuple('0123456789')
# One image of four is more than may be unreadable by default.
HALF = 'default_hooks.unreadable_images.max_share=0.5'


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        kind: What is wrong.
        folder: Its folder.
        prepare: Generates the input in the folder and returns the command, the tool first.
        survives: Whether the command should succeed.
        warning: Expected in its output then; empty if nothing is lost.
        tool_reports: Whether the command is one that reports faults.
    """

    kind: str
    folder: Path
    prepare: Callable[[], list[str]]
    survives: bool = False
    warning: str = ''
    tool_reports: bool = False


def make_cases(folder: Path) -> list[Case]:
    """Make all cases in an empty folder."""
    data = folder / 'digits'
    prepare_digits(data, num_train=8, num_val=4, image_size=96)
    cases = Cases(folder, data)
    add_images(cases)
    add_segmentation_maps(cases)
    add_annotations(cases)
    add_class_folders(cases)
    add_configs(cases)
    add_checkpoints(cases)
    add_arguments(cases)
    return cases.cases


class Cases:
    """Collects cases, each in a folder with a copy of the digits."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.parent, self.data = folder, data
        self.cases: list[Case] = []

    def add(
        self,
        kind: str,
        make: Callable[[Path], list],
        survives: bool = False,
        warning: str = '',
        tool_reports: bool = False,
    ) -> None:
        """Add a case; ``make`` generates the input in a folder and returns the command."""
        folder = self.parent / f'{len(self.cases):03d}'

        def prepare() -> list[str]:
            shutil.copytree(self.data, folder / 'data/digits')
            return [str(part) for part in make(folder)]

        self.cases.append(Case(kind, folder, prepare, survives, warning, tool_reports))


def train_detector(
    *options: str, flags: Sequence = ('--no-validate',), config: str | Path = DETECTOR
) -> list:
    """Make the command that trains a small detector for two steps."""
    return [
        *('train.py', config, '--work-dir', 'work', *flags, '--cfg-options'),
        *('model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]'),
        *('train_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'param_scheduler=None'),
        *no_workers('train', 'val'),
        *options,
    ]


def train_segmentor() -> list:
    """Make the command that trains a small segmentor for one epoch."""
    return train_detector(config=SEGMENTOR)


def train_classifier(
    *options: str, flags: Sequence = ('--no-validate',), config: str | Path = CLASSIFIER
) -> list:
    """Make the command that trains a classifier for one epoch of a few images."""
    return [
        *('train.py', config, '--work-dir', 'work', *flags, '--cfg-options'),
        *('train_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'param_scheduler=None'),
        *no_workers('train', 'val'),
        *options,
    ]


def evaluate_detector(checkpoint: str, *options: str) -> list:
    """Make the command that evaluates a small detector."""
    return [
        *('test.py', DETECTOR, checkpoint, '--work-dir', 'work', '--cfg-options'),
        *('model.backbone.arch=m0', 'model.neck.in_channels=[64,128,192]'),
        *(*no_workers('test'), *options),
    ]


def no_workers(*splits: str) -> list[str]:
    """Options with which the main process loads the data."""
    return [
        f'{split}_dataloader.{option}'
        for split in splits
        for option in ('num_workers=0', 'persistent_workers=False')
    ]


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Encode an image as the content of a file."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(mode: str = 'RGB', size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Make an image of noise."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    return noise.convert(mode)


def claim(width: int, height: int) -> bytes:
    """Make a PNG of a few bytes with a size in its header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack('>I', len(content))
            + name
            + content
            + struct.pack('>I', zlib.crc32(name + content))
        )

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b'\0' * 100)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    )


def broken_images() -> dict[str, bytes]:
    """List files that are not images, or too large."""
    png, jpeg = encode(picture(), 'PNG'), encode(picture(), 'JPEG')
    flipped = bytearray(png)
    flipped[20] ^= 255
    return {
        'empty file': b'',
        'one byte': b'\0',
        'text': b'this is no image',
        'HTML error page': b'<!DOCTYPE html><html><body>404</body></html>',
        'JSON': b'{"message": "Not Found"}',
        'git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
        'random bytes': np.random.default_rng(0).bytes(5000),
        'zeros': bytes(5000),
        'only the header of a PNG': png[:20],
        'only the header of a JPEG': jpeg[:20],
        'PNG with a corrupt header': bytes(flipped),
        'PNG that claims no width': claim(0, 96),
        'PNG that claims no height': claim(96, 0),
        'PNG that claims 120 million pixels': claim(12000, 10000),
        'PNG that claims 10 billion pixels': claim(100000, 100000),
        'ZIP archive': b'PK\x03\x04' + bytes(100),
        'PDF': b'%PDF-1.4\n' + bytes(100),
        'pickle': pickle.dumps(dict(a=1)),
        'NumPy array': b'\x93NUMPY' + bytes(100),
        'JPEG that is cut in half': jpeg[: len(jpeg) // 2],
        'PNG that is cut in half': png[: len(png) // 2],
    }


def odd_images() -> dict[str, bytes]:
    """List images of unusual formats that can be read."""
    deep = Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    return {
        'grey PNG': encode(picture('L'), 'PNG'),
        'grey PNG with transparency': encode(picture('LA'), 'PNG'),
        'PNG of one bit': encode(picture('1'), 'PNG'),
        'PNG with a palette': encode(picture('P'), 'PNG'),
        'RGBA PNG': encode(picture('RGBA'), 'PNG'),
        'PNG of 16 bits': encode(deep, 'PNG'),
        'grey JPEG': encode(picture('L'), 'JPEG'),
        'CMYK JPEG': encode(picture('CMYK'), 'JPEG'),
        'progressive JPEG': encode(picture(), 'JPEG', progressive=True),
        'JPEG with EXIF rotation': encode(picture(), 'JPEG', exif=rotated),
        'BMP named .png': encode(picture(), 'BMP'),
        'WebP named .png': encode(picture(), 'WEBP'),
        'TIFF named .png': encode(picture(), 'TIFF'),
        'GIF named .png': encode(picture(), 'GIF'),
        'image larger than annotated': encode(picture(size=(300, 200)), 'PNG'),
    }


def small_images() -> dict[str, bytes]:
    """List images that are smaller than annotated."""
    sizes = ((1, 1), (96, 1), (1, 96), (3000, 1), (40, 20))
    return {
        f'{width} x {height} pixels': encode(picture(size=(width, height)), 'PNG')
        for width, height in sizes
    }


def add_images(cases: Cases) -> None:
    """Add broken and unusual images for each command that reads images."""

    def put(content, path, command):
        def make(folder):
            (folder / path).write_bytes(content)
            return command

        return make

    def put_into_class(content):
        def make(folder):
            root = folder / 'data/digits/classification/train'
            for path in root.glob('*/*.png'):
                path.unlink()
            for name in NAMES:
                (root / name / 'good.png').write_bytes(encode(picture('L', (32, 32)), 'PNG'))
            (root / '0/broken.png').write_bytes(content)
            # So that the image is in the epoch, whatever the order.
            return train_classifier(HALF, 'train_dataloader.drop_last=False')

        return make

    scene, val_scene = 'data/digits/train/000002.png', 'data/digits/val/000002.png'
    check = ['check_dataset.py', DETECTOR]
    warned = dict(survives=True, warning='cannot be read')
    for name, content in broken_images().items():
        cases.add(f'image: {name}', put(content, scene, train_detector(HALF)), **warned)
        cases.add(
            f'image in evaluation: {name}',
            put(content, val_scene, train_detector(HALF, flags=())),
            **warned,
        )
        cases.add(f'image of a class: {name}', put_into_class(content), **warned)
        cases.add(f'image checked: {name}', put(content, scene, check), tool_reports=True)
    for name, content in small_images().items():
        cases.add(f'image: {name}', put(content, scene, train_detector(HALF)), **warned)
    for name, content in odd_images().items():
        cases.add(f'image: {name}', put(content, scene, train_detector()), survives=True)

    def replace_by(kind):
        def make(folder):
            path = folder / scene
            path.unlink()
            if kind == 'folder':
                path.mkdir()
            elif kind == 'pipe':
                os.mkfifo(path)
            elif kind == 'loop':
                path.symlink_to(path)
            return train_detector()

        return make

    for kind in ('nothing', 'folder', 'pipe', 'loop'):
        cases.add(f'image: {kind} in its place', replace_by(kind))

    def all_broken(folder):
        for path in (folder / 'data/digits/train').iterdir():
            path.write_bytes(b'broken')
        return train_detector()

    cases.add('image: all broken', all_broken)
    cases.add('images: more unreadable ones than allowed', put(b'', scene, train_detector()))


def add_segmentation_maps(cases: Cases) -> None:
    """Add segmentation maps that do not fit their images or the classes."""

    def put(change):
        def make(folder):
            path = folder / 'data/digits/segments/train/000002.png'
            change(path, np.asarray(Image.open(path)).copy())
            return train_segmentor()

        return make

    def save(function):
        return lambda path, pixels: Image.fromarray(function(pixels)).save(path)

    for name, change in {
        'with a value beyond the classes': save(lambda pixels: pixels + 11),
        'of 16 bits': save(lambda pixels: pixels.astype(np.uint16) + 256),
        'of three channels': save(lambda pixels: np.stack([pixels] * 3, 2)),
        'of another size': save(lambda pixels: pixels[:50]),
        'that is missing': lambda path, _: path.unlink(),
        'that is empty': lambda path, _: path.write_bytes(b''),
        'that is text': lambda path, _: path.write_bytes(b'no image'),
    }.items():
        cases.add(f'segmentation map {name}', put(change))
    for name, function in {
        'of ignored pixels': lambda pixels: np.full_like(pixels, 255),
        'of 16 bits with few values': lambda pixels: pixels.astype(np.uint16),
    }.items():
        cases.add(f'segmentation map {name}', put(save(function)), survives=True)


def add_annotations(cases: Cases) -> None:
    """Add COCO annotation files that are corrupt, or wrong in one place."""

    def write(change, split='train', **options):
        def make(folder):
            path = folder / f'data/digits/annotations/instances_{split}.json'
            content = json.loads(path.read_text())
            result = change(content)
            content = content if result is None else result
            text = content if isinstance(content, (str, bytes)) else json.dumps(content)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
            return train_detector(**options)

        return make

    texts = {
        'empty': lambda c: '',
        'cut in half': lambda c: json.dumps(c)[: len(json.dumps(c)) // 2],
        'without its last byte': lambda c: json.dumps(c)[:-1],
        'of random bytes': lambda c: np.random.default_rng(0).bytes(1000),
        'in UTF-16': lambda c: json.dumps(c).encode('utf-16')[:-3],
        'with a comma too many': lambda c: json.dumps(c)[:-1] + ',}',
        'in single quotes': lambda c: json.dumps(c).replace('"', "'"),
        'that is a list': lambda c: [c],
        'that is null': lambda c: 'null',
        'that is a number': lambda c: '7',
        'that is a word': lambda c: '"COCO"',
        'that is nested too deeply': lambda c: '[' * 100000,
        'that is an HTML page': lambda c: '<html></html>',
    }
    for name, change in texts.items():
        cases.add(f'annotation file {name}', write(change))
    for part in ('images', 'annotations', 'categories'):
        for name, value in {
            'missing': None,
            'null': 'null',
            'an empty list': [],
            'a number': 7,
            'a list of numbers': [1, 2],
        }.items():

            def change(content, part=part, name=name, value=value):
                if name == 'missing':
                    del content[part]
                else:
                    content[part] = None if value == 'null' else value

            cases.add(f'annotation file: {part} are {name}', write(change))
    fields = dict(
        images=('id', 'file_name', 'height', 'width'),
        annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
        categories=('id', 'name'),
    )
    for part, names in fields.items():
        for field in names:

            def remove(content, part=part, field=field):
                del content[part][1][field]

            cases.add(f'annotation file: {part} without {field}', write(remove))

    def set_field(part, field, value):
        def change(content):
            content[part][1][field] = value

        return write(change)

    stops = {
        ('images', 'file_name'): {
            'a number': 7,
            'null': None,
            'empty': '',
            'elsewhere': '../x.png',
        },
        ('images', 'height'): {'null': None, 'a word': '96'},
        ('images', 'width'): {'a list': [96]},
        ('images', 'id'): {'a list': [1], 'that of another': 1},
        ('annotations', 'id'): {'that of another': 1, 'an object': {}},
        ('annotations', 'bbox'): {
            'null': None,
            'a word': 'box',
            'of three numbers': [1, 2, 3],
            'of five numbers': [1, 2, 3, 4, 5],
            'of words': ['1', '2', '3', '4'],
            'a number': 4,
        },
        ('annotations', 'area'): {'a word': '9', 'null': None},
        ('annotations', 'category_id'): {'a list': [1]},
        ('annotations', 'image_id'): {'an object': {}},
        ('categories', 'name'): {'that of another': '0', 'a number': 7},
        ('categories', 'id'): {'that of another': 1},
    }
    for (part, field), values in stops.items():
        for name, value in values.items():
            cases.add(
                f'annotation file: {field} of {part} is {name}', set_field(part, field, value)
            )
    nan = math.nan
    warned_of = {
        ('images', 'height'): {'0': 0, 'negative': -96},
        ('images', 'width'): {'0': 0, 'NaN': nan},
        ('annotations', 'bbox'): {
            'NaN on the left': [nan, 2, 30, 40],
            'NaN on top': [1, nan, 30, 40],
            'NaN wide': [1, 2, nan, 40],
            'NaN high': [1, 2, 30, nan],
            'of no width': [1, 2, 0, 40],
            'of no height': [1, 2, 30, 0],
            'of negative width': [50, 2, -30, 40],
            'of negative height': [1, 50, 30, -40],
            'of half a pixel': [1, 2, 0.5, 0.5],
            'to the left of its image': [-90, 2, 30, 40],
            'above its image': [1, -90, 30, 40],
            'to the right of its image': [200, 2, 30, 40],
            'below its image': [1, 200, 30, 40],
            'infinite': [1, 2, math.inf, 40],
        },
        ('annotations', 'area'): {'0': 0, 'negative': -5, 'NaN': nan},
        ('annotations', 'category_id'): {'unknown': 99, 'a word': 'dog'},
        ('annotations', 'image_id'): {'unknown': 99},
        ('categories', 'id'): {'null': None, 'that of no annotation': 99},
    }
    for (part, field), values in warned_of.items():
        for name, value in values.items():
            cases.add(
                f'annotation file: {field} of {part} is {name}',
                set_field(part, field, value),
                survives=True,
                warning='has faults',
            )
    for name, box in {
        'across the edge of its image': [-20, -20, 60, 60],
        'larger than its image': [-500, -500, 2000, 2000],
        'of 1e30 pixels': [0, 0, 1e30, 1e30],
    }.items():
        cases.add(
            f'annotation file: bbox of annotations is {name}',
            set_field('annotations', 'bbox', box),
            survives=True,
        )

    def reverse(content):
        content['categories'].reverse()

    def forget(content):
        del content['categories'][4]

    def forget_last(content):
        del content['categories'][9]

    def rename(content):
        for category in content['categories']:
            category['name'] = 'x' + category['name']

    def add_category(content):
        content['categories'].append(dict(id=77, name='letter'))

    def add_duplicate(content):
        content['categories'] += [dict(id=77, name='letter'), dict(id=77, name='sign')]

    def empty_image(content):
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 1]

    def only_crowds(content):
        for annotation in content['annotations']:
            annotation['iscrowd'] = 1

    cases.add('annotation file: categories in another order', write(reverse))
    cases.add('annotation file: a category is missing', write(forget))
    cases.add('annotation file: other categories', write(rename))
    cases.add(
        'annotation file: the last category is missing',
        write(forget_last),
        survives=True,
        warning='has faults',
    )
    cases.add('annotation file: an extra category', write(add_category), survives=True)
    cases.add('annotation file: unused categories with one id', write(add_duplicate), survives=True)
    cases.add('annotation file: an image without annotations', write(empty_image), survives=True)
    cases.add('annotation file: only crowds', write(only_crowds))
    cases.add('annotation file of evaluation is cut', write(texts['cut in half'], 'val', flags=()))


def add_class_folders(cases: Cases) -> None:
    """Add folders of classes that cannot be trained on."""

    def finetune(change, *arguments):
        def make(folder):
            root = folder / 'mine'
            shutil.copytree(folder / 'data/digits/classification/val', root)
            change(root)
            return ['finetune.py', root, '--weights', 'evit:///no/such.pth', *arguments]

        return make

    def keep(*names):
        def change(root):
            for path in root.iterdir():
                if path.name not in names:
                    shutil.rmtree(path)

        return change

    def clear(root):
        for path in (root / '3').iterdir():
            path.unlink()

    def leave_one(root):
        for path in sorted((root / '3').iterdir())[1:]:
            path.unlink()

    def other_val(root):
        (root / 'train').mkdir()
        for name in '01':
            (root / name).rename(root / 'train' / name)
        (root / 'val').mkdir()
        (root / '7').rename(root / 'val/7')

    def rename(root):
        for path in root.glob('*/*.png'):
            path.rename(path.with_suffix('.txt'))

    for name, change in {
        'missing': shutil.rmtree,
        'a file': lambda root: (shutil.rmtree(root), root.write_text('')),
        'empty': keep(),
        'of one class': keep('1'),
        'with a class without images': clear,
        'with a class of one image': leave_one,
        'with other classes for validation': other_val,
        'of files that are not images': rename,
    }.items():
        cases.add(f'class folders: {name}', finetune(change))
    cases.add('class folders: missing weights', finetune(keep('0', '1')))
    cases.add('class folders: fraction of 2', finetune(keep('0', '1'), '--val-fraction', '2'))


def add_configs(cases: Cases) -> None:
    """Add configs that cannot be read, and invalid settings."""

    def config(text, name='config.py'):
        def make(folder):
            path = folder / name
            path.write_text(text)
            return [part for part in train_detector(config=path) if part != 'param_scheduler=None']

        return make

    base = f'_base_ = {str(DETECTOR)!r}\n'
    for name, text in {
        'is empty': '',
        'is not Python': 'model = dict(',
        'has tabs and spaces mixed': 'if True:\n\tx = 1\n        y = 2\n',
        'raises': 'raise RuntimeError("no")',
        'divides by zero': 'x = 1 / 0',
        'imports a missing module': 'import no_such_module',
        'has a base that is missing': "_base_ = 'no_such.py'",
        'is its own base': "_base_ = 'config.py'",
        'has an unknown library as base': "_base_ = 'mmnothing::retinanet.py'",
        'has a base that its library does not have': "_base_ = 'mmdet::retinanet/no_such.py'",
        'has no model': 'train_cfg = dict(max_epochs=1)',
        'has only a model': "model = dict(type='RetinaNet')",
        'is in Latin-1': 'x = "\\xe9"',
        'asks for an import that is missing': base + "custom_imports = dict(imports=['no_such'])",
        'deletes its model': base + 'model = None',
        'has an unknown scheduler': base + "param_scheduler = [dict(type='NoScheduler')]",
        'has an unknown hook': base + "custom_hooks = [dict(type='NoHook')]",
        'has a scheduler that ends before it begins': base
        + "param_scheduler = [dict(type='LinearLR', begin=5, end=3)]",
        'compiles an unknown part': base
        + "custom_hooks = [dict(type='CompileHook', parts='tail')]",
        'has a scheduler that is a word': base + "param_scheduler = ['LinearLR']",
    }.items():
        cases.add(f'config {name}', config(text))
    cases.add('config in broken JSON', config('{', 'config.json'))
    cases.add('config in broken YAML', config('a: [', 'config.yaml'))
    cases.add('config in an unknown format', config('x', 'config.txt'))
    cases.add('config that is a folder', lambda folder: train_detector(config=folder))
    cases.add('config that is missing', lambda folder: train_detector(config='no_such.py'))

    settings = (
        'model.type=NoSuchDetector',
        'model.backbone.type=NoSuchBackbone',
        'model.backbone.arch=m7',
        'model.backbone.arch=7',
        'model.backbone.arch="dict()"',
        'model.backbone.window_sizes=[7,7]',
        'model.backbone.window_sizes=[0,7,7]',
        'model.backbone.window_sizes=seven',
        'model.backbone.out_indices=[0,3]',
        'model.backbone.out_indices=[]',
        'model.backbone.frozen_stages=9',
        'model.backbone.drop_path_rate=2',
        'model.backbone.in_channels=0',
        'model.backbone.no_such_argument=1',
        'model.backbone.norm_cfg.type=NoNorm',
        'model.backbone.act_cfg.type=NoActivation',
        'model.backbone.init_cfg.type=NoInit',
        'model.neck.in_channels=[1,2,3]',
        'model.neck.num_outs=1',
        'model.neck.num_upsample_levels=-1',
        'model.neck.out_channels=0',
        'model.neck.type=NoNeck',
        'model.bbox_head.type=NoHead',
        'model.bbox_head.num_classes=0',
        'model.bbox_head.num_classes=3',
        'model.bbox_head.in_channels=7',
        'model.bbox_head.loss_cls.type=NoLoss',
        'model.data_preprocessor.mean=[1,2]',
        'model.data_preprocessor.std=[0,0,0]',
        'model.data_preprocessor.type=NoPreprocessor',
        'train_dataloader.batch_size=0',
        'train_dataloader.batch_size=-1',
        'train_dataloader.batch_size=many',
        'train_dataloader.num_workers=-1',
        'train_dataloader.num_workers=two',
        'train_dataloader.persistent_workers=True',
        'train_dataloader.sampler.type=NoSampler',
        'train_dataloader.dataset.type=NoDataset',
        'train_dataloader.dataset.data_root=/no/such',
        'train_dataloader.dataset.data_root=None',
        'train_dataloader.dataset.ann_file=no.json',
        'train_dataloader.dataset.data_prefix.img=no/',
        'train_dataloader.dataset.metainfo.classes=[cat,dog]',
        'train_dataloader.dataset.metainfo.classes=[]',
        'train_dataloader.dataset.pipeline.0.type=NoTransform',
        'train_dataloader.dataset.pipeline=[]',
        'train_dataloader.dataset.pipeline.2.scale=0',
        'train_dataloader.dataset.pipeline.2.scale=[0,0]',
        'optim_wrapper.optimizer.type=NoOptimizer',
        'optim_wrapper.optimizer.lr=-1',
        'optim_wrapper.optimizer.lr=fast',
        'optim_wrapper.optimizer.lr=1e30',
        'optim_wrapper.optimizer.lr=nan',
        'optim_wrapper.type=NoWrapper',
        'optim_wrapper.accumulative_counts=0',
        'optim_wrapper.clip_grad.max_norm=none',
        'train_cfg.max_epochs=0',
        'train_cfg.max_epochs=-1',
        'train_cfg.max_epochs=few',
        'train_cfg.max_epochs=1.5',
        'train_cfg.type=NoLoop',
        'param_scheduler=[dict(type="NoScheduler")]',
        'param_scheduler=[dict(type="LinearLR",start_factor=0)]',
        'param_scheduler=[dict(type="LinearLR",begin=5,end=3)]',
        'default_hooks.checkpoint.type=NoHook',
        'default_hooks.checkpoint.interval=often',
        'default_hooks.logger.interval=0',
        'custom_hooks=[dict(type="NoHook")]',
        'custom_hooks=[dict(type="CompileHook",parts="tail")]',
        'randomness.seed=-1',
        'randomness.seed=abc',
        'load_from=no_such.pth',
        'load_from=http://localhost:9/no.pth',
        'load_from=evit://m9',
        'log_level=LOUD',
        'env_cfg.mp_cfg.mp_start_method=teleport',
        'visualizer.type=NoVisualizer',
        'no_equals_sign',
        'model.backbone.arch.depths=3',
        'model.backbone=EfficientViT',
    )
    for setting in settings:
        cases.add(f'setting {setting}', lambda folder, setting=setting: train_detector(setting))
    for setting in (
        'val_evaluator.ann_file=no.json',
        'val_evaluator.metric=speed',
        'val_evaluator.type=NoMetric',
        'val_dataloader=None',
        'val_evaluator=None',
        'val_cfg=None',
        'val_dataloader.batch_size=0',
        'train_cfg.val_interval=0',
    ):
        cases.add(
            f'setting {setting}',
            lambda folder, setting=setting: train_detector(setting, flags=()),
        )
    for setting in (
        'model.head.num_classes=7',
        'model.head.in_channels=1',
        'train_dataloader.batch_size=1',
    ):
        cases.add(f'setting {setting}', lambda folder, setting=setting: train_classifier(setting))


def add_checkpoints(cases: Cases) -> None:
    """Add checkpoints that are corrupt, malicious, or of another model."""

    def weights(**changes):
        from mmengine.config import Config
        from mmengine.registry import DefaultScope

        from mmevit.utils.configs import build_model

        cfg = Config.fromfile(DETECTOR)
        cfg.merge_from_dict(
            {'model.backbone.arch': 'm0', 'model.neck.in_channels': [64, 128, 192], **changes}
        )
        with DefaultScope.overwrite_default_scope('mmdet'):
            return build_model(cfg).state_dict()

    def file_of(content, name='bad.pth', command=evaluate_detector):
        def make(folder):
            path = folder / name
            value = content() if callable(content) else content
            if isinstance(value, bytes):
                path.write_bytes(value)
            else:
                torch.save(value, path)
            return command('bad.pth' if name == 'bad.pth' else name)

        return make

    def saved():
        buffer = BytesIO()
        torch.save(dict(state_dict=weights()), buffer)
        return buffer.getvalue()

    def flipped():
        content = bytearray(saved())
        content[len(content) // 2] ^= 255
        return bytes(content)

    class Command:
        def __reduce__(self):
            return os.system, ('touch hacked',)

    def without_last():
        state = weights()
        state.popitem()
        return dict(state_dict=state)

    nan = torch.full((128,), math.nan)
    contents = {
        'empty': b'',
        'text': b'no weights',
        'an HTML page': b'<html></html>',
        'a git LFS pointer': b'version https://git-lfs.github.com/spec/v1\n',
        'random bytes': np.random.default_rng(0).bytes(10000),
        'zeros': bytes(10000),
        'an empty archive': b'PK\x05\x06' + bytes(18),
        'cut at 1 %': lambda: saved()[: len(saved()) // 100],
        'cut in half': lambda: saved()[: len(saved()) // 2],
        'cut by one byte': lambda: saved()[:-1],
        'with a flipped bit': flipped,
        'a pickle with code': pickle.dumps(Command()),
        'an archive with code': lambda: dict(state_dict=weights(), extra=Command()),
        'a list': [1, 2],
        'a number': 7,
        'a tensor': torch.zeros(3),
        'an empty dict': {},
        'a dict of words': dict(state_dict='weights'),
        'a state_dict of words': dict(state_dict=dict(a='b')),
        'of another arch': lambda: dict(state_dict=EfficientViT('m1').state_dict()),
        'of only a backbone': lambda: dict(state_dict=EfficientViT('m0').state_dict()),
        'of more classes': lambda: dict(state_dict=weights(**{'model.bbox_head.num_classes': 20})),
        'without one weight': without_last,
        'with one weight too many': lambda: dict(state_dict=weights() | dict(x=torch.zeros(1))),
        'with NaN': lambda: dict(state_dict=weights() | {'neck.lateral_convs.0.bn.bias': nan}),
    }
    for name, content in contents.items():
        cases.add(f'checkpoint: {name}', file_of(content))
    for name, content in {
        'empty': b'',
        'with a truncated header': struct.pack('<Q', 500) + b'{',
        'with a header of exabytes': struct.pack('<Q', 2**60) + b'{}',
        'with a header that is not JSON': struct.pack('<Q', 4) + b'abcd',
    }.items():
        cases.add(f'safetensors: {name}', file_of(content, 'bad.safetensors'))

    def resume(checkpoint):
        return train_detector(flags=('--no-validate', '--resume', checkpoint))

    for name, content in {
        'of only weights': lambda: dict(state_dict=weights()),
        'without an epoch': lambda: dict(state_dict=weights(), meta={}, message_hub={}),
        'with the optimizer of another model': lambda: dict(
            state_dict=weights(),
            meta=dict(epoch=1, iter=2),
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
            optimizer=dict(state={}, param_groups=[]),
        ),
        'cut in half': lambda: saved()[: len(saved()) // 2],
    }.items():
        cases.add(f'resumed checkpoint: {name}', file_of(content, command=resume))
    for name in ('evit://', 'evit://m9', 'evit:///no/such.pth', 'http://localhost:9/a.pth', 'work'):
        cases.add(f'checkpoint named {name}', lambda folder, name=name: evaluate_detector(name))

    def start_from(checkpoint):
        return train_detector(
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint=evit://{{}}/{checkpoint}',
        )

    for name, content in {
        'of another arch': lambda: dict(model=EfficientViT('m1').state_dict()),
        'of a ResNet': dict(state_dict={'layer1.0.conv1.weight': torch.zeros(1)}),
        'cut in half': lambda: saved()[: len(saved()) // 2],
    }.items():

        def make(folder, content=content):
            command = file_of(content, command=start_from)(folder)
            return [str(part).replace('{}', str(folder)) for part in command]

        cases.add(f'weights to start from: {name}', make)


def add_arguments(cases: Cases) -> None:
    """Add invalid command lines."""
    picture_path = 'data/digits/val/000001.png'
    convert, heads = 'convert_checkpoint.py', 'analysis/head_similarity.py'
    commands = {
        'no config': ['train.py'],
        'unknown flag': ['train.py', DETECTOR, '--fast'],
        'work directory that cannot be made': train_detector(flags=('--work-dir', '/proc/no')),
        'unknown launcher': ['train.py', DETECTOR, '--launcher', 'rocket'],
        'launcher without torchrun': train_detector(flags=('--launcher', 'pytorch')),
        'slurm without a GPU': train_detector(flags=('--launcher', 'slurm')),
        'resume from nothing': train_detector(flags=('--resume', 'no.pth')),
        'no checkpoint': ['test.py', DETECTOR],
        'predictions to an unknown ending': ['test.py', DETECTOR, 'a.pth', '--out', 'a.txt'],
        'metrics without a file': ['test.py', DETECTOR, 'a.pth', '--out-item', 'metrics'],
        'export to an unknown target': ['export.py', DETECTOR, 'a.pth', '--to', 'abacus'],
        'export of a missing checkpoint': ['export.py', DETECTOR, 'no.pth', '--to', 'onnx'],
        'picture that is missing': ['infer.py', DETECTOR, 'no.pth', 'no.png'],
        'model that is unknown': ['infer.py', 'no-such-model', 'no.pth', picture_path],
        'conversion of a missing file': [
            'convert_checkpoint.py',
            'no.pth',
            'b.pth',
            '--to',
            'timm',
        ],
        'conversion to an unknown form': [convert, 'a', 'b', '--to', 'origami'],
        'digits over something else': ['prepare_digits.py', '.'],
        'digits too small': ['prepare_digits.py', 'small', '--image-size', '8'],
        'benchmark of nothing': ['benchmark.py'],
        'benchmark of an unknown model': ['benchmark.py', 'no-such-model'],
        'benchmark in an unknown form': ['benchmark.py', 'backbone::m0', '--forms', 'liquid'],
        'benchmark with 0 rounds': ['benchmark.py', 'backbone::m0', '--rounds', '0'],
        'profile of an unknown model': ['analysis/profile_runtime.py', 'no-such-model'],
        'heads of a model without any': [heads, CLASSIFIER, 'timm::resnet18'],
        'ablation that is unknown': ['analysis/ablation.py', 'no-such-ablation'],
        'data checked without a config': ['check_dataset.py', 'no.py'],
    }
    for name, command in commands.items():
        cases.add(f'command line: {name}', lambda folder, command=command: command)
