"""The bad inputs: name, generation and expected outcome of each."""

import json
import math
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmevit.models import EfficientViT
from mmevit.utils.configs import build_model

ROOT = Path(__file__).parents[3]
DETECTOR = ROOT / 'configs/retinanet_evit_m4_digits.py'
CLASSIFIER = ROOT / 'configs/evit_m0_digits.py'
SEGMENTOR = ROOT / 'configs/semantic-fpn_evit_m4_digits.py'
NAMES = tuple('0123456789')
SMALL = {'model.backbone.arch': 'm0', 'model.neck.in_channels': [64, 128, 192]}
# One image of four is more than may be unreadable by default.
HALF = 'default_hooks.unreadable_images.max_share=0.5'
SCENE = 'data/digits/train/000002.png'


@dataclass(frozen=True)
class Case:
    """A bad input.

    Args:
        kind: What is wrong.
        make: Generates the input in a folder that has the digits, and returns the command, the
            tool first.
        survives: Whether the command should succeed.
        warning: Expected in its output then; empty if nothing is lost.
        tool_reports: Whether the command is one that reports faults.
    """

    kind: str
    make: Callable[[Path], list]
    survives: bool = False
    warning: str = ''
    tool_reports: bool = False


def make_cases() -> list[Case]:
    """Make all cases."""
    return [
        *image_cases(),
        *segmentation_map_cases(),
        *annotation_cases(),
        *class_folder_cases(),
        *config_cases(),
        *checkpoint_cases(),
        *argument_cases(),
    ]


def train(
    *options: str, flags: Iterable = ('--no-validate',), config: str | Path = DETECTOR
) -> list:
    """Make the command that trains a small model for one epoch of a few images."""
    small = [] if config == CLASSIFIER else small_detector()
    return [
        *('train.py', config, '--work-dir', 'work', *flags, '--cfg-options', *small),
        *('train_dataloader.batch_size=4', 'train_cfg.max_epochs=1', 'param_scheduler=None'),
        *(*no_workers('train', 'val'), *options),
    ]


def evaluate(checkpoint: str) -> list:
    """Make the command that evaluates a small detector."""
    command = ['test.py', DETECTOR, checkpoint, '--work-dir', 'work', '--cfg-options']
    return [*command, *small_detector(), *no_workers('test')]


def small_detector() -> list[str]:
    """Options for a detector with M0."""
    return [f'{key}={value}'.replace(' ', '') for key, value in SMALL.items()]


def no_workers(*splits: str) -> list[str]:
    """Options with which the main process loads the data."""
    return [
        f'{split}_dataloader.{option}'
        for split in splits
        for option in ('num_workers=0', 'persistent_workers=False')
    ]


def edit(path: str, change: Callable[[Path], Any], command: list) -> Callable[[Path], list]:
    """Change a file or folder of a case before its command."""

    def make(folder: Path) -> list:
        change(folder / path)
        return command

    return make


def write(path: str, content: bytes, command: list) -> Callable[[Path], list]:
    """Write a file of a case before its command."""
    return edit(path, lambda target: target.write_bytes(content), command)


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
        'PNG with a corrupt header': with_flipped_bit(png, 20),
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


def image_cases() -> Iterator[Case]:
    """Broken and unusual images, for each command that reads images."""

    def put_into_class(content):
        def change(root):
            unlink(root.glob('*/*.png'))
            for name in NAMES:
                (root / name / 'good.png').write_bytes(encode(picture('L', (32, 32)), 'PNG'))
            (root / '0/broken.png').write_bytes(content)

        # So that the image is in the epoch, whatever the order.
        command = train(HALF, 'train_dataloader.drop_last=False', config=CLASSIFIER)
        return edit('data/digits/classification/train', change, command)

    warned = dict(survives=True, warning='cannot be read')
    train_half, check = train(HALF), ['check_dataset.py', DETECTOR]
    for name, content in broken_images().items():
        yield Case(f'image: {name}', write(SCENE, content, train_half), **warned)
        val_scene = SCENE.replace('train', 'val')
        make = write(val_scene, content, train(HALF, flags=()))
        yield Case(f'image in evaluation: {name}', make, **warned)
        yield Case(f'image of a class: {name}', put_into_class(content), **warned)
        yield Case(f'image checked: {name}', write(SCENE, content, check), tool_reports=True)
    for width, height in ((1, 1), (96, 1), (1, 96), (3000, 1), (40, 20)):  # smaller than annotated
        content = encode(picture(size=(width, height)), 'PNG')
        yield Case(f'image: {width} x {height} pixels', write(SCENE, content, train_half), **warned)
    for name, content in odd_images().items():
        yield Case(f'image: {name}', write(SCENE, content, train()), survives=True)

    def replace_by(make):
        return lambda path: (path.unlink(), make(path))

    for name, make in {
        'nothing': lambda path: None,
        'folder': Path.mkdir,
        'pipe': os.mkfifo,
        'loop': lambda path: path.symlink_to(path),
    }.items():
        yield Case(f'image: {name} in its place', edit(SCENE, replace_by(make), train()))

    def break_all(folder):
        for path in folder.iterdir():
            path.write_bytes(b'broken')

    yield Case('image: all broken', edit('data/digits/train', break_all, train()))
    yield Case('images: more unreadable ones than allowed', write(SCENE, b'', train()))


def unlink(paths: Iterable[Path]) -> None:
    """Delete files."""
    for path in list(paths):
        path.unlink()


def segmentation_map_cases() -> Iterator[Case]:
    """Segmentation maps that do not fit their images or the classes."""

    def save(function):
        def change(path):
            Image.fromarray(function(np.asarray(Image.open(path)).copy())).save(path)

        return change

    for name, change in {
        'with a value beyond the classes': save(lambda pixels: pixels + 11),
        'of 16 bits': save(lambda pixels: pixels.astype(np.uint16) + 256),
        'of three channels': save(lambda pixels: np.stack([pixels] * 3, 2)),
        'of another size': save(lambda pixels: pixels[:50]),
        'that is missing': Path.unlink,
        'that is empty': lambda path: path.write_bytes(b''),
        'that is text': lambda path: path.write_bytes(b'no image'),
        'of ignored pixels': save(lambda pixels: np.full_like(pixels, 255)),
        'of 16 bits with few values': save(lambda pixels: pixels.astype(np.uint16)),
    }.items():
        survives = name in ('of ignored pixels', 'of 16 bits with few values')
        path = 'data/digits/segments/train/000002.png'
        make = edit(path, change, train(config=SEGMENTOR))
        yield Case(f'segmentation map {name}', make, survives)


def annotation_cases() -> Iterator[Case]:
    """COCO annotation files that are corrupt, or wrong in one place."""

    def rewrite(to_text, split='train', **options):
        def change(path):
            text = to_text(json.loads(path.read_text()))
            path.write_bytes(text.encode() if isinstance(text, str) else text)

        path = f'data/digits/annotations/instances_{split}.json'
        return edit(path, change, train(**options))

    def mutate(change):
        def to_text(content):
            change(content)
            return json.dumps(content)

        return rewrite(to_text)

    def set_field(part, field, value):
        return mutate(lambda content: content[part][1].update({field: value}))

    def cut(content):
        return json.dumps(content)[: len(json.dumps(content)) // 2]

    for name, to_text in {
        'empty': lambda _: '',
        'cut in half': cut,
        'without its last byte': lambda content: json.dumps(content)[:-1],
        'of random bytes': lambda _: np.random.default_rng(0).bytes(1000),
        'in UTF-16': lambda content: json.dumps(content).encode('utf-16')[:-3],
        'with a comma too many': lambda content: json.dumps(content)[:-1] + ',}',
        'in single quotes': lambda content: json.dumps(content).replace('"', "'"),
        'that is a list': lambda content: json.dumps([content]),
        'that is null': lambda _: 'null',
        'that is a number': lambda _: '7',
        'that is a word': lambda _: '"COCO"',
        'that is nested too deeply': lambda _: '[' * 100000,
        'that is an HTML page': lambda _: '<html></html>',
    }.items():
        yield Case(f'annotation file {name}', rewrite(to_text))
    fields = dict(
        images=('id', 'file_name', 'height', 'width'),
        annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
        categories=('id', 'name'),
    )
    values = {'null': None, 'an empty list': [], 'a number': 7, 'a list of numbers': [1, 2]}
    for part, names in fields.items():
        make = mutate(lambda content, part=part: content.pop(part))
        yield Case(f'annotation file: {part} are missing', make)
        for name, value in values.items():
            make = mutate(lambda content, new={part: value}: content.update(new))
            yield Case(f'annotation file: {part} are {name}', make)
        for field in names:
            make = mutate(lambda content, part=part, field=field: content[part][1].pop(field))
            yield Case(f'annotation file: {part} without {field}', make)

    refused = {
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
    nan = math.nan
    reported = {
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
    accepted = {
        ('annotations', 'bbox'): {
            'across the edge of its image': [-20, -20, 60, 60],
            'larger than its image': [-500, -500, 2000, 2000],
            'of 1e30 pixels': [0, 0, 1e30, 1e30],
        }
    }
    warned = dict(survives=True, warning='has faults')
    for table, expected in ((refused, {}), (reported, warned), (accepted, dict(survives=True))):
        for (part, field), values in table.items():
            for name, value in values.items():
                kind = f'annotation file: {field} of {part} is {name}'
                yield Case(kind, set_field(part, field, value), **expected)

    def change_all(part, change):
        return mutate(lambda content: content.update({part: change(content[part])}))

    letter, sign = dict(id=77, name='letter'), dict(id=77, name='sign')
    for name, part, change, expected in (
        ('categories in another order', 'categories', lambda all_: all_[::-1], {}),
        ('a category is missing', 'categories', lambda all_: all_[:4] + all_[5:], {}),
        (
            'other categories',
            'categories',
            lambda all_: [{**one, 'name': 'x' + one['name']} for one in all_],
            {},
        ),
        ('the last category is missing', 'categories', lambda all_: all_[:9], warned),
        (
            *('an extra category', 'categories', lambda all_: [*all_, letter]),
            dict(survives=True),
        ),
        (
            *('unused categories with one id', 'categories', lambda all_: [*all_, letter, sign]),
            dict(survives=True),
        ),
        (
            'an image without annotations',
            'annotations',
            lambda all_: [one for one in all_ if one['image_id'] != 1],
            dict(survives=True),
        ),
        ('only crowds', 'annotations', lambda all_: [{**one, 'iscrowd': 1} for one in all_], {}),
    ):
        yield Case(f'annotation file: {name}', change_all(part, change), **expected)
    yield Case('annotation file of evaluation is cut', rewrite(cut, 'val', flags=()))


def class_folder_cases() -> Iterator[Case]:
    """Folders of classes that cannot be trained on."""

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

    def move_to_other_classes(root):
        for path in ('train/0', 'train/1', 'val/7'):
            (root / path).parent.mkdir(exist_ok=True)
            (root / path[-1]).rename(root / path)

    def rename(root):
        for path in root.glob('*/*.png'):
            path.rename(path.with_suffix('.txt'))

    for name, change in {
        'missing': shutil.rmtree,
        'a file': lambda root: (shutil.rmtree(root), root.write_text('')),
        'empty': keep(),
        'of one class': keep('1'),
        'with a class without images': lambda root: unlink((root / '3').iterdir()),
        'with a class of one image': lambda root: unlink(sorted((root / '3').iterdir())[1:]),
        'with other classes for validation': move_to_other_classes,
        'of files that are not images': rename,
        'missing weights': keep('0', '1'),
    }.items():
        yield Case(f'class folders: {name}', finetune(change))
    yield Case('class folders: fraction of 2', finetune(keep('0', '1'), '--val-fraction', '2'))


# By the common start of their names.
SETTINGS = {
    'model.': """
        type=NoSuchDetector backbone=EfficientViT data_preprocessor.mean=[1,2]
        data_preprocessor.std=[0,0,0] data_preprocessor.type=NoPreprocessor
    """,
    'model.backbone.': """
        type=NoSuchBackbone arch=m7 arch=7 arch="dict()" arch.depths=3 window_sizes=[7,7]
        window_sizes=[0,7,7] window_sizes=seven out_indices=[0,3] out_indices=[] frozen_stages=9
        drop_path_rate=2 in_channels=0 no_such_argument=1 norm_cfg.type=NoNorm
        act_cfg.type=NoActivation init_cfg.type=NoInit
    """,
    'model.neck.': """
        in_channels=[1,2,3] num_outs=1 num_upsample_levels=-1 out_channels=0 type=NoNeck
    """,
    'model.bbox_head.': """
        type=NoHead num_classes=0 num_classes=3 in_channels=7 loss_cls.type=NoLoss
    """,
    'train_dataloader.': """
        batch_size=0 batch_size=-1 batch_size=many num_workers=-1 num_workers=two
        persistent_workers=True sampler.type=NoSampler
    """,
    'train_dataloader.dataset.': """
        type=NoDataset data_root=/no/such data_root=None ann_file=no.json data_prefix.img=no/
        metainfo.classes=[cat,dog] metainfo.classes=[] pipeline.0.type=NoTransform pipeline=[]
        pipeline.2.scale=0 pipeline.2.scale=[0,0]
    """,
    'optim_wrapper.': """
        optimizer.type=NoOptimizer optimizer.lr=-1 optimizer.lr=fast optimizer.lr=1e30
        optimizer.lr=nan type=NoWrapper accumulative_counts=0 clip_grad.max_norm=none
    """,
    'train_cfg.': 'max_epochs=0 max_epochs=-1 max_epochs=few max_epochs=1.5 type=NoLoop',
    '': """
        param_scheduler=[dict(type="NoScheduler")]
        param_scheduler=[dict(type="LinearLR",start_factor=0)]
        param_scheduler=[dict(type="LinearLR",begin=5,end=3)]
        custom_hooks=[dict(type="NoHook")] custom_hooks=[dict(type="CompileHook",parts="tail")]
        default_hooks.checkpoint.type=NoHook default_hooks.checkpoint.interval=often
        default_hooks.logger.interval=0 randomness.seed=-1 randomness.seed=abc
        load_from=no_such.pth load_from=http://localhost:9/no.pth load_from=evit://m9
        log_level=LOUD env_cfg.mp_cfg.mp_start_method=teleport visualizer.type=NoVisualizer
        no_equals_sign
    """,
}
VALIDATION_SETTINGS = """
    val_evaluator.ann_file=no.json val_evaluator.metric=speed val_evaluator.type=NoMetric
    val_dataloader=None val_evaluator=None val_cfg=None val_dataloader.batch_size=0
    train_cfg.val_interval=0
"""
CLASSIFIER_SETTINGS = """
    model.head.num_classes=7 model.head.in_channels=1 train_dataloader.batch_size=1
"""


def config_cases() -> Iterator[Case]:
    """Configs that cannot be read, and invalid settings."""

    def config(text, name='config.py'):
        command = [part for part in train(config=name) if part != 'param_scheduler=None']
        return write(name, text.encode(), command)

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
        yield Case(f'config {name}', config(text))
    yield Case('config in broken JSON', config('{', 'config.json'))
    yield Case('config in broken YAML', config('a: [', 'config.yaml'))
    yield Case('config in an unknown format', config('x', 'config.txt'))
    yield Case('config that is a folder', lambda folder: train(config=folder))
    yield Case('config that is missing', lambda _: train(config='no_such.py'))

    settings = [start + end for start, ends in SETTINGS.items() for end in ends.split()]
    for options, arguments in (
        (settings, {}),
        (VALIDATION_SETTINGS.split(), dict(flags=())),
        (CLASSIFIER_SETTINGS.split(), dict(config=CLASSIFIER)),
    ):
        for option in options:
            command = train(option, **arguments)
            yield Case(f'setting {option}', lambda _, command=command: command)


def small_weights(**changes: Any) -> dict:
    """Random weights of the small detector."""
    cfg = Config.fromfile(DETECTOR)
    cfg.merge_from_dict({**SMALL, **changes})
    with DefaultScope.overwrite_default_scope('mmdet'):
        return build_model(cfg).state_dict()


def saved() -> bytes:
    """The content of a valid checkpoint."""
    buffer = BytesIO()
    torch.save(dict(state_dict=small_weights()), buffer)
    return buffer.getvalue()


def cut_in_half() -> bytes:
    """A truncated checkpoint."""
    return saved()[: len(saved()) // 2]


def with_flipped_bit(content: bytes, position: int) -> bytes:
    """Flip the bits of a byte."""
    return content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :]


class RunsCommand:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch hacked',)


def checkpoint_cases() -> Iterator[Case]:
    """Checkpoints that are corrupt, malicious, or of another model."""

    def file_of(content, name='bad.pth', command=evaluate):
        def save(path):
            value = content() if callable(content) else content
            path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)

        return edit(name, save, command(name))

    nan = torch.full((128,), math.nan)
    for name, content in {
        'empty': b'',
        'text': b'no weights',
        'an HTML page': b'<html></html>',
        'a git LFS pointer': b'version https://git-lfs.github.com/spec/v1\n',
        'random bytes': np.random.default_rng(0).bytes(10000),
        'zeros': bytes(10000),
        'an empty archive': b'PK\x05\x06' + bytes(18),
        'cut at 1 %': lambda: saved()[: len(saved()) // 100],
        'cut in half': cut_in_half,
        'cut by one byte': lambda: saved()[:-1],
        'with a flipped bit': lambda: with_flipped_bit(saved(), len(saved()) // 2),
        'a pickle with code': pickle.dumps(RunsCommand()),
        'an archive with code': lambda: dict(state_dict=small_weights(), extra=RunsCommand()),
        'a list': [1, 2],
        'a number': 7,
        'a tensor': torch.zeros(3),
        'an empty dict': {},
        'a dict of words': dict(state_dict='weights'),
        'a state_dict of words': dict(state_dict=dict(a='b')),
        'of another arch': lambda: dict(state_dict=EfficientViT('m1').state_dict()),
        'of only a backbone': lambda: dict(state_dict=EfficientViT('m0').state_dict()),
        'of more classes': lambda: dict(
            state_dict=small_weights(**{'model.bbox_head.num_classes': 20})
        ),
        'without one weight': lambda: dict(state_dict=dict(list(small_weights().items())[:-1])),
        'with one weight too many': lambda: dict(
            state_dict=small_weights() | dict(x=torch.zeros(1))
        ),
        'with NaN': lambda: dict(
            state_dict=small_weights() | {'neck.lateral_convs.0.bn.bias': nan}
        ),
    }.items():
        yield Case(f'checkpoint: {name}', file_of(content))
    for name, content in {
        'empty': b'',
        'with a truncated header': struct.pack('<Q', 500) + b'{',
        'with a header of exabytes': struct.pack('<Q', 2**60) + b'{}',
        'with a header that is not JSON': struct.pack('<Q', 4) + b'abcd',
    }.items():
        yield Case(f'safetensors: {name}', file_of(content, 'bad.safetensors'))

    def resume(checkpoint):
        return train(flags=('--no-validate', '--resume', checkpoint))

    for name, content in {
        'of only weights': lambda: dict(state_dict=small_weights()),
        'without an epoch': lambda: dict(state_dict=small_weights(), meta={}, message_hub={}),
        'with the optimizer of another model': lambda: dict(
            state_dict=small_weights(),
            meta=dict(epoch=1, iter=2),
            message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
            optimizer=dict(state={}, param_groups=[]),
        ),
        'cut in half': cut_in_half,
    }.items():
        yield Case(f'resumed checkpoint: {name}', file_of(content, command=resume))
    for name in ('evit://', 'evit://m9', 'evit:///no/such.pth', 'http://localhost:9/a.pth', 'work'):
        yield Case(f'checkpoint named {name}', lambda _, name=name: evaluate(name))

    for name, content in {
        'of another arch': lambda: dict(model=EfficientViT('m1').state_dict()),
        'of a ResNet': dict(state_dict={'layer1.0.conv1.weight': torch.zeros(1)}),
        'cut in half': cut_in_half,
    }.items():

        def make(folder, content=content):
            checkpoint = f'model.backbone.init_cfg.checkpoint=evit://{folder}/bad.pth'
            command = train('model.backbone.init_cfg.type=Pretrained', checkpoint)
            return file_of(content, command=lambda _: command)(folder)

        yield Case(f'weights to start from: {name}', make)


def argument_cases() -> Iterator[Case]:
    """Invalid command lines."""
    convert, heads = 'convert_checkpoint.py', 'analysis/head_similarity.py'
    for name, command in {
        'no config': ['train.py'],
        'unknown flag': ['train.py', DETECTOR, '--fast'],
        'work directory that cannot be made': train(flags=('--work-dir', '/proc/no')),
        'unknown launcher': ['train.py', DETECTOR, '--launcher', 'rocket'],
        'launcher without torchrun': train(flags=('--launcher', 'pytorch')),
        'slurm without a GPU': train(flags=('--launcher', 'slurm')),
        'resume from nothing': train(flags=('--resume', 'no.pth')),
        'no checkpoint': ['test.py', DETECTOR],
        'predictions to an unknown ending': ['test.py', DETECTOR, 'a.pth', '--out', 'a.txt'],
        'metrics without a file': ['test.py', DETECTOR, 'a.pth', '--out-item', 'metrics'],
        'export to an unknown target': ['export.py', DETECTOR, 'a.pth', '--to', 'abacus'],
        'export of a missing checkpoint': ['export.py', DETECTOR, 'no.pth', '--to', 'onnx'],
        'picture that is missing': ['infer.py', DETECTOR, 'no.pth', 'no.png'],
        'model that is unknown': ['infer.py', 'no-such-model', 'no.pth', SCENE],
        'conversion of a missing file': [convert, 'no.pth', 'b.pth', '--to', 'timm'],
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
    }.items():
        yield Case(f'command line: {name}', lambda _, command=command: command)
