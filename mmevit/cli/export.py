"""Export a classifier, a detector or a backbone for another runtime, and verify the file."""

import hashlib
import math
import platform
from argparse import ArgumentError, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmevit.checkpoint.loader import check_checkpoint, find_dataset_meta, read_for_loading
from mmevit.checkpoint.matching import check_fit
from mmevit.checks import check_config
from mmevit.checks.data import check_data
from mmevit.cli.arguments import SizeAction, add_config_arguments, argument, command
from mmevit.datasets.sampling import find_test_pipeline, sample_images
from mmevit.deploy import TARGETS, export, load_exported, try_to_fold
from mmevit.deploy.evaluation import TASKS
from mmevit.deploy.exporting import choose_dynamic, compare
from mmevit.deploy.networks import count_input_channels, make_exportable
from mmevit.runtime.sessions import FORMAT
from mmevit.utils.configs import build_model, read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write, check_ending
from mmevit.version import __version__

# Accepted difference from PyTorch, relative to the largest output.
TOLERANCES = dict(float32=1e-4, float16=2e-2, bfloat16=1e-1)
# Targets that support non-maximum suppression.
DETECTOR_TARGETS = ('onnx', 'openvino')


@command(
    argument('config', 'config file, of mmdet or mmpretrain'),
    argument('checkpoint', 'checkpoint file'),
    argument('--to', 'target format', choices=TARGETS, default='onnx'),
    argument('--out', 'file to write (default: model.*)', metavar='FILE'),
    argument('--part', 'backbone: feature maps', choices=['model', 'backbone'], default='model'),
    argument('--size', 'image size (default: that of the test pipeline)', action=SizeAction),
    argument('--batch-size', 'batch size, if not dynamic', type=int, default=1),
    argument(
        '--dynamic',
        'dynamic axes (default: the batch, if supported, and the size for detectors)',
        nargs='+',
        choices=['batch', 'size', 'none'],
    ),
    argument('--dtype', 'type to compute in', choices=[*TOLERANCES, 'int8'], default='float32'),
    argument('--calibration-images', 'number of training images for int8', type=int, default=256),
    add_config_arguments,
)
def main(args: Namespace) -> None:
    """Build the model, write the file, and compare their outputs."""
    if min(args.calibration_images, args.batch_size) < 1:
        raise ArgumentError(None, '--calibration-images and --batch-size must be 1 or more.')
    args.out = args.out or 'model' + TARGETS[args.to]
    check_checkpoint(args.checkpoint)
    check_ending(args.out, [TARGETS[args.to]])
    needs = ['model', 'test_dataloader', *(['train_dataloader'] if args.dtype == 'int8' else [])]
    cfg = read_config(args.config, args.cfg_options, needs)
    check_config(cfg, splits=())
    if args.dtype == 'int8':
        check_data(cfg, 'train')
    model, checkpoint = load_model(cfg, args.checkpoint)
    network = make_exportable(try_to_fold(model), args.part)
    is_detector = 'boxes' in network.output_names
    dynamic = choose_axes(args, is_detector)
    size = args.size or infer_size(cfg)
    if min(size) < 32:
        raise ConfigError(
            f'The images have {size[0]}x{size[1]} pixels, but exported files need 32x32 or more. '
            'Give a larger --size.'
        )
    num_channels = count_input_channels(network)
    inputs = make_inputs(is_detector, args.batch_size, num_channels, *size)
    batches = calibration_batches(cfg, model, args.calibration_images, is_detector)
    axes = [None if 'batch' in dynamic else args.batch_size, num_channels]
    axes += [None, None] if 'size' in dynamic else size
    metadata = make_metadata(args, cfg, checkpoint, axes)
    print(f'Exporting to {args.out}; this takes minutes for aoti, about one for other targets.')
    with atomic_write(args.out) as file:
        export(network, inputs, file, args.to, dynamic, args.dtype, metadata, batches)
        verify(args, network, file, inputs, axes)
    print(f'Wrote {args.out}, inputs {axes}.')


def load_model(cfg: Config, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config, load a checkpoint, and return both."""
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)
    model = build_model(cfg)
    checkpoint, name = read_for_loading(path)
    check_fit(model, checkpoint)
    load_checkpoint(model, name)
    return model.eval(), checkpoint


def choose_axes(args: Namespace, is_detector: bool) -> set[str]:
    """Return the dynamic axes; raise ConfigError if they or the target do not suit the model."""
    axes = set(args.dynamic) - {'none'} if args.dynamic else None
    if is_detector:
        axes = {'batch', 'size'} if axes is None else axes
        if args.to not in DETECTOR_TARGETS:
            raise ConfigError(
                f'Detectors can be exported to {" and ".join(DETECTOR_TARGETS)} only. For '
                f'{args.to} give --part backbone.'
            )
        if args.dtype == 'int8' and 'size' not in axes:
            raise ConfigError(
                'The calibration images of detectors have several sizes. Give --dynamic batch size.'
            )
    return choose_dynamic(args.to, axes)


def infer_size(cfg: Config) -> tuple[int, int]:
    """Infer the height and width of the model's inputs, with padding, from the test pipeline."""
    size = None
    for step in find_test_pipeline(cfg):
        if type_name(step) == 'CenterCrop':
            size = step.crop_size
        elif type_name(step) == 'Resize':
            size = step.get('scale')
    if size is None:
        raise ConfigError('The test pipeline does not set the image size. Give --size.')
    width, height = (size, size) if isinstance(size, int) else size
    preprocessor = cfg.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def make_inputs(is_detector: bool, *shape: int) -> tuple[Tensor, ...]:
    """Make example inputs: noise (N, C, H, W), and for detectors the sizes without padding."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([shape[2:]] * shape[0]).float()
    return (images, sizes) if is_detector else (images,)


def calibration_batches(
    cfg: Config, model: nn.Module, num_images: int, is_detector: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield training images (1, C, H, W), normalized, and for detectors their sizes (1, 2)."""
    for batch in sample_images(cfg, model, 'train', num_images):
        sizes = torch.tensor([sample.img_shape[:2] for sample in batch['data_samples']]).float()
        yield (batch['inputs'], sizes) if is_detector else (batch['inputs'],)


def make_metadata(
    args: Namespace, cfg: Config, checkpoint: dict[str, Any], axes: Sequence[int | None]
) -> dict[str, Any]:
    """Return the task, the classes and the preprocessing, for using the file without the config.

    ``axes`` are the axes of the images, None for dynamic ones.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    swaps = bool(preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb'))
    pipeline = [step for step in find_test_pipeline(cfg) if not type_name(step).startswith('Pack')]
    # The images of data sets without files, such as CIFAR, are RGB.
    is_rgb = swaps == any(type_name(step).startswith('Load') for step in pipeline)
    weights = Path(args.checkpoint)
    return dict(
        format=FORMAT,
        version=__version__,
        task=TASKS.get(cfg.get('default_scope')) if args.part == 'model' else 'features',
        model=type_name(cfg.model),
        config=Path(args.config).name,
        checkpoint=dict(
            file=weights.name,
            sha256=hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        ),
        classes=find_dataset_meta(checkpoint.get('meta')).get('classes'),
        score_threshold=(cfg.model.get('test_cfg') or {}).get('score_thr'),
        input=dict(
            shape=axes,
            channels={1: 'GRAY', 3: 'RGB' if is_rgb else 'BGR'}.get(axes[1] or 0),
            mean=preprocessor.get('mean'),
            std=preprocessor.get('std'),
            pad_size_divisor=preprocessor.get('pad_size_divisor', 1),
            pad_value=preprocessor.get('pad_value', preprocessor.get('pad_val', 0)),
            pipeline=Config(dict(pipeline=pipeline)).to_dict()['pipeline'],
        ),
    )


def verify(
    args: Namespace,
    network: nn.Module,
    path: Path,
    inputs: tuple[Tensor, ...],
    axes: Sequence[int | None],
) -> None:
    """Compare the file with the network, on larger images too along dynamic axes.

    Raises:
        ConfigError: If the difference exceeds the tolerance of the dtype.
    """
    session: Any = load_exported(path, trust=True)
    if args.to == 'coreml' and platform.system() != 'Darwin':
        operators = ', '.join(f'{n} {name}' for name, n in session.operators.most_common())
        print(f'Inputs {session.inputs}, outputs {session.outputs}, operators: {operators}.')
        print('Core ML runs on macOS only, so the outputs were not compared.')
        return
    examples, is_detector = [inputs], len(inputs) > 1
    if None in axes:
        sides = zip(axes, inputs[0].shape, (1, 0, 33, 70), strict=True)
        larger = [side + extra if axis is None else side for axis, side, extra in sides]
        examples.append(make_inputs(is_detector, *larger))
    differences = [compare(network, session, example) for example in examples]
    # Python's max() can drop NaN.
    difference = float(torch.tensor(differences).max())
    print(f'Largest difference from PyTorch: {difference:.2e} of the largest output.')
    if is_detector:
        with torch.no_grad():
            count = int((network(*inputs)[2] >= 0).sum())
        print(f'Compared {count} boxes, detected in an image of noise.')
    if math.isnan(difference):
        raise ConfigError(
            'The file was not written, since its outputs are NaN. Use float32, or another version '
            'of the runtime.'
        )
    tolerance = TOLERANCES.get(args.dtype)
    if tolerance is None or (is_detector and args.dtype != 'float32'):
        print(f'Evaluate its accuracy with: tools/test.py {args.config} {args.out}')
    elif not difference <= tolerance:
        raise ConfigError(
            f'The file was not written, since its outputs differ from PyTorch by {difference:.2e}, '
            f'more than {tolerance:.0e}. Use float32, or another version of the runtime.'
        )
