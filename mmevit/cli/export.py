"""Export a classifier, a detector or a backbone for another runtime, and verify the file."""

import argparse
import math
import platform
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint, find_dataset_meta, read_for_loading
from mmevit.checkpoint.matching import check_fit
from mmevit.checks import check_config
from mmevit.checks.data import check_data
from mmevit.cli.arguments import SizeAction, add_config_arguments
from mmevit.cli.errors import report_errors
from mmevit.datasets.sampling import find_test_pipeline, sample_images
from mmevit.deploy import TARGETS, export, load_exported, try_to_fold
from mmevit.deploy.evaluation import TASKS
from mmevit.deploy.exporting import choose_dynamic, compare
from mmevit.deploy.networks import count_input_channels, make_exportable
from mmevit.utils.configs import build_model, read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write, check_ending

# Accepted difference from PyTorch, relative to the largest output.
TOLERANCES = dict(float32=1e-4, float16=2e-2, bfloat16=1e-1)
# Targets that support non-maximum suppression.
DETECTOR_TARGETS = ('onnx', 'openvino')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, of mmdet or mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--to', choices=TARGETS, default='onnx', help='target format')
    parser.add_argument('--out', metavar='FILE', help='file to write (default: model.*)')
    parser.add_argument(
        '--part', choices=['model', 'backbone'], default='model', help='backbone: feature maps'
    )
    parser.add_argument(
        '--size', action=SizeAction, help='image size (default: that of the test pipeline)'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='batch size, if not dynamic')
    parser.add_argument(
        '--dynamic',
        nargs='+',
        choices=['batch', 'size', 'none'],
        help='dynamic axes (default: the batch, if supported, and the size for detectors)',
    )
    parser.add_argument(
        '--dtype', choices=[*TOLERANCES, 'int8'], default='float32', help='type to compute in'
    )
    parser.add_argument(
        '--calibration-images', type=int, default=256, help='number of training images for int8'
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    args.out = args.out or 'model' + TARGETS[args.to]
    if min(args.calibration_images, args.batch_size) < 1:
        parser.error('--calibration-images and --batch-size must be 1 or more.')
    return args


@report_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Build the model, write the file, and compare their outputs."""
    args = parse_args(argv)
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
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
    axes = requested_axes(args, is_detector)
    if is_detector:
        check_detector(args, axes or ())
    dynamic = choose_dynamic(args.to, axes)

    size = args.size or infer_size(cfg)
    if min(size) < 32:
        raise ConfigError(
            f'The images have {size[0]}x{size[1]} pixels, but exported files need 32x32 or more. '
            'Give a larger --size.'
        )
    shape = (args.batch_size, count_input_channels(network), *size)
    inputs = make_inputs(is_detector, shape)
    batches = calibration_batches(cfg, model, args.calibration_images, is_detector)
    metadata = make_metadata(args, cfg, checkpoint, inputs, dynamic)
    print(f'Exporting to {args.out}; this takes minutes for aoti, about one for other targets.')
    with atomic_write(args.out) as file:
        export(network, inputs, file, args.to, dynamic, args.dtype, metadata, batches)
        verify(args, network, file, inputs, dynamic)
    print(f'Wrote {args.out}, inputs {metadata["input"]["shape"]}.')


def load_model(cfg: Config, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config, load a checkpoint, and return both."""
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)
    model = build_model(cfg)
    checkpoint, name = read_for_loading(path)
    check_fit(model, checkpoint)
    load_checkpoint(model, name)
    return model.eval(), checkpoint


def requested_axes(args: argparse.Namespace, is_detector: bool) -> set[str] | None:
    """Return the dynamic axes of the command line; None for the default of the target."""
    if args.dynamic:
        return set(args.dynamic) - {'none'}
    return {'batch', 'size'} if is_detector else None


def check_detector(args: argparse.Namespace, dynamic: Collection[str]) -> None:
    """Raise ConfigError if the target or the dynamic axes do not suit a detector."""
    if args.to not in DETECTOR_TARGETS:
        raise ConfigError(
            f'Detectors can be exported to {" and ".join(DETECTOR_TARGETS)} only. For {args.to} '
            'give --part backbone.'
        )
    if args.dtype == 'int8' and 'size' not in dynamic:
        raise ConfigError(
            'The calibration images of detectors have several sizes. Give --dynamic batch size.'
        )


def infer_size(cfg: Config) -> tuple[int, int]:
    """Infer the height and width of the model's inputs, with padding, from the test pipeline.

    Raises:
        ConfigError: If the pipeline does not set the size.
    """
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


def make_inputs(is_detector: bool, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
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
    args: argparse.Namespace,
    cfg: Config,
    checkpoint: dict[str, Any],
    inputs: tuple[Tensor, ...],
    dynamic: Collection[str],
) -> dict[str, Any]:
    """Return the task, the classes and the preprocessing, for using the file without the config."""
    preprocessor = cfg.model.get('data_preprocessor') or {}
    batch_size, num_channels, height, width = inputs[0].shape
    sides = (None, None) if 'size' in dynamic else (height, width)
    is_rgb = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    pipeline = [step for step in find_test_pipeline(cfg) if not type_name(step).startswith('Pack')]
    return dict(
        task=TASKS.get(cfg.get('default_scope')) if args.part == 'model' else 'features',
        config=Path(args.config).name,
        classes=find_dataset_meta(checkpoint.get('meta')).get('classes'),
        input=dict(
            shape=[None if 'batch' in dynamic else batch_size, num_channels, *sides],
            channels={1: 'GRAY', 3: 'RGB' if is_rgb else 'BGR'}.get(num_channels),
            mean=preprocessor.get('mean'),
            std=preprocessor.get('std'),
            pad_size_divisor=preprocessor.get('pad_size_divisor', 1),
            pipeline=mmengine.Config(dict(pipeline=pipeline)).to_dict()['pipeline'],
        ),
    )


def verify(
    args: argparse.Namespace,
    network: nn.Module,
    path: Path,
    inputs: tuple[Tensor, ...],
    dynamic: Collection[str],
) -> None:
    """Compare the outputs of the file and the network, and print the largest difference.

    Raises:
        ConfigError: If it exceeds the tolerance of the dtype.
    """
    session: Any = load_exported(path, trust=True)
    if args.to == 'coreml' and platform.system() != 'Darwin':
        operators = ', '.join(f'{n} {name}' for name, n in session.operators.most_common())
        print(f'Inputs {session.inputs}, outputs {session.outputs}, operators: {operators}.')
        print('Core ML runs on macOS only, so the outputs were not compared.')
        return
    examples = [inputs, make_larger(inputs, dynamic)] if dynamic else [inputs]
    differences = [compare(network, session, example) for example in examples]
    # Python's max() can drop NaN.
    difference = float(torch.tensor(differences).max())
    print(f'Largest difference from PyTorch: {difference:.2e} of the largest output.')
    is_detector = len(inputs) > 1
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


def make_larger(inputs: tuple[Tensor, ...], dynamic: Collection[str]) -> tuple[Tensor, ...]:
    """Make example inputs of a larger batch and size, as far as these are dynamic."""
    batch_size, num_channels, height, width = inputs[0].shape
    if 'size' in dynamic:
        height, width = height + 33, width + 70
    batch_size += 'batch' in dynamic
    return make_inputs(len(inputs) > 1, (batch_size, num_channels, height, width))
