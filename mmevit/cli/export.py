"""Export a model or its backbone for another runtime, and verify the file."""

import hashlib
import math
import platform
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.functional import pad

from mmevit.checkpoint.loader import check_checkpoint, find_dataset_meta, load_into
from mmevit.checks import check_config
from mmevit.checks.data import check_data
from mmevit.checks.dataset_info import DatasetInfo
from mmevit.cli.arguments import (
    SizeAction,
    add_config_arguments,
    argument,
    command,
    positive_int,
)
from mmevit.datasets.sampling import find_test_pipeline, sample_images
from mmevit.deploy import TARGETS, export, load_exported, try_to_fold
from mmevit.deploy.exporting import check_dtype, choose_dynamic, compare, find_target
from mmevit.deploy.networks import Exportable, count_input_channels, make_exportable
from mmevit.deploy.programs import as_tuple
from mmevit.runtime.sessions import FORMAT
from mmevit.utils.configs import (
    build_model,
    find_preprocessor,
    list_dataset_configs,
    read_config,
    type_name,
)
from mmevit.utils.errors import ConfigError, one_line
from mmevit.utils.files import atomic_write, check_ending
from mmevit.utils.images import round_up
from mmevit.version import __version__

# Accepted difference of logits and feature maps in half precision, relative to the largest one.
TOLERANCES = dict(float16=2e-2, bfloat16=1e-1)
# Targets that support complete dense models.
DENSE_TARGETS = ('onnx', 'openvino', 'litert', 'executorch', 'ncnn', 'torchscript')
DTYPES = ('float32', *TOLERANCES, 'int8')


@command(
    argument('config', 'config file, of mmdet, mmpretrain or mmsegmentation'),
    argument('checkpoint', 'checkpoint file'),
    argument('--to', 'target format', choices=TARGETS, default='onnx'),
    argument('--out', 'file to write (default: model.*)', metavar='FILE'),
    argument('--part', 'backbone: feature maps', choices=['model', 'backbone'], default='model'),
    argument('--size', 'image size (default: that of the test pipeline)', action=SizeAction),
    argument('--batch-size', 'batch size, if not dynamic', type=positive_int, default=1),
    argument(
        '--dynamic',
        'dynamic axes (default: the batch, and for dense models the size, if supported)',
        nargs='+',
        choices=['batch', 'size', 'none'],
    ),
    argument('--dtype', 'type to compute in', choices=DTYPES, default='float32'),
    argument(
        '--calibration-images',
        'number of training images for int8',
        type=positive_int,
        default=256,
    ),
    add_config_arguments,
)
def main(args: Namespace) -> None:
    """Build the model, write the file, and compare their outputs."""
    args.out = args.out or 'model' + TARGETS[args.to]
    check_checkpoint(args.checkpoint)
    check_ending(args.out, [TARGETS[args.to]])
    check_dtype(args.to, args.dtype)
    needs = ['model', 'test_dataloader', *(['train_dataloader'] if args.dtype == 'int8' else [])]
    cfg = read_config(args.config, args.cfg_options, needs)
    check_config(cfg, splits=())
    if args.dtype == 'int8':
        check_data(cfg, 'train')
    model, checkpoint = load_model(cfg, args.checkpoint)
    network = make_exportable(try_to_fold(model), args.part)
    dynamic = choose_axes(args, network)
    size, divisor = choose_size(args, cfg, network, dynamic)
    num_channels = count_input_channels(network)
    inputs = network.make_inputs(make_noise(args.batch_size, num_channels, *size))
    if network.is_dense:
        check_network(network, inputs)
    axes = [None if 'batch' in dynamic else args.batch_size, num_channels]
    axes += [None, None] if 'size' in dynamic else size
    batches = calibration_batches(cfg, model, args.calibration_images, network, axes)
    metadata = make_metadata(args, cfg, network, checkpoint, axes, divisor)
    print(f'Exporting to {args.out}; this takes minutes for aoti, about one for other targets.')
    with atomic_write(args.out) as file:
        export(network, inputs, file, args.to, dynamic, args.dtype, metadata, batches)
        verify(args, network, file, inputs, axes, divisor)
    print(f'Wrote {args.out}, inputs {axes}.')


def load_model(cfg: Config, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config, load a checkpoint, and return both."""
    init_default_scope(cfg.default_scope)
    model = build_model(cfg)
    checkpoint = load_into(model, path)
    return model.eval(), checkpoint


def choose_axes(args: Namespace, network: Exportable) -> set[str]:
    """Return the dynamic axes; raise ConfigError if they or the target do not suit the model."""
    axes = set(args.dynamic) - {'none'} if args.dynamic else None
    if network.is_dense:
        if args.to not in DENSE_TARGETS:
            raise ConfigError(
                f'{args.to} does not support {network.task}. Use {" or ".join(DENSE_TARGETS)}, or '
                'give --part backbone.'
            )
        axes = find_target(args.to).DYNAMIC if axes is None else axes
    return choose_dynamic(args.to, axes)


def choose_size(
    args: Namespace, cfg: Config, network: Exportable, dynamic: set[str]
) -> tuple[tuple[int, int], int]:
    """Return the height and width of the example, and the number that must divide any of them."""
    inferred = infer_size(cfg)
    size = args.size or inferred
    if size is None:
        raise ConfigError('The test pipeline does not set the image size. Give --size.')
    if min(size) < 32:
        raise ConfigError(
            f'The images have {size[0]}x{size[1]} pixels, but exported files need 32x32 or more. '
            'Give a larger --size.'
        )
    is_fixed = 'size' not in dynamic
    if args.dtype == 'int8' and is_fixed and inferred:
        check_calibration_size(inferred, size, network.is_dense)
    divisor = find_divisor(network, size, is_fixed)
    height, width = (round_up(side, divisor) for side in size)
    if (height, width) != tuple(size) and is_fixed:
        raise ConfigError(
            f'The model needs sizes that {divisor} divides, but the images have '
            f'{size[0]}x{size[1]} pixels. Give --size {height} {width}.'
        )
    return (height, width), divisor


def check_calibration_size(images: Sequence[int], size: Sequence[Any], can_pad: bool) -> None:
    """Raise ConfigError if images of the test pipeline do not fit a file of a fixed size."""
    is_small = images[0] <= size[0] and images[1] <= size[1]
    if not (is_small if can_pad else tuple(images) == tuple(size)):
        raise ConfigError(
            f'--size is {size[0]}x{size[1]}, but the calibration images of the test pipeline have '
            f'{images[0]}x{images[1]} pixels. Change the test pipeline too.'
        )


def infer_size(cfg: Config) -> tuple[int, int] | None:
    """Infer the height and width of the model's inputs, with padding, from the test pipeline."""
    size = None
    for step in find_test_pipeline(cfg):
        if type_name(step) == 'CenterCrop':
            size = step.crop_size
        elif type_name(step) == 'Resize':
            size = step.get('scale')
    if size is None:
        return None
    width, height = (size, size) if isinstance(size, int) else size
    divisor = find_pad_divisor(cfg)
    return round_up(height, divisor), round_up(width, divisor)


def find_pad_divisor(cfg: Config) -> int:
    """Return the number that divides height and width after padding by the data preprocessor."""
    _, preprocessor = find_preprocessor(cfg)
    test_cfg = preprocessor.get('test_cfg') or {}  # of mmsegmentation
    if test_cfg.get('size'):
        raise ConfigError(
            'data_preprocessor.test_cfg.size is not supported. Use size_divisor, or Pad in the '
            'test pipeline.'
        )
    return test_cfg.get('size_divisor') or preprocessor.get('pad_size_divisor') or 1


def make_noise(*shape: int) -> Tensor:
    """Make example images (N, C, H, W)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def find_divisor(network: Exportable, size: Sequence[int], is_fixed: bool) -> int:
    """Return the number that must divide height and width: 32 for some necks, otherwise 1.

    Raises:
        ConfigError: If the size is fixed, and the model does not support it.
    """
    tried = size if is_fixed else [round_up(side, 32) + 1 for side in size]
    try:
        with torch.no_grad():
            network(*network.make_inputs(make_noise(1, count_input_channels(network), *tried)))
    except (AssertionError, RuntimeError) as error:
        if not any(side % 32 for side in tried):
            raise ConfigError(
                f'The model does not support images of {tried[0]}x{tried[1]} pixels '
                f'({one_line(error)}). Give another --size.'
            ) from error
        return 32
    return 1


def check_network(network: Exportable, inputs: tuple[Tensor, ...]) -> None:
    """Raise ConfigError if a network does not return what the model itself predicts."""
    with torch.no_grad():
        outputs = as_tuple(network(*inputs))
        expected = network.predict_with_library(inputs[0])
    difference = network.measure_difference(outputs, expected)
    if not difference <= network.tolerance:
        raise ConfigError(
            'This model cannot be exported, since the graph for it differs from its predictions '
            f'by {difference:.2e} {network.unit}. Give --part backbone.'
        )
    if network.task in ('detection', 'instance-segmentation') and not (outputs[2] >= 0).any():
        print('The model detects nothing in the noise that it is compared with.')


def calibration_batches(
    cfg: Config,
    model: nn.Module,
    num_images: int,
    network: Exportable,
    axes: Sequence[int | None],
) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of a training image (N, C, H, W), normalized, and for detectors of its size.

    ``axes`` are those of the batches, None for dynamic ones. If the size is fixed, images of dense
    models are padded or cropped at the bottom and right.
    """
    batch_size, _, *fixed = axes
    for batch in sample_images(cfg, model, 'train', num_images):
        images = batch['inputs']
        # Samples of data sets without files, such as CIFAR, have no img_shape.
        shapes = (sample.get('img_shape', images.shape[2:]) for sample in batch['data_samples'])
        sizes = torch.tensor([shape[:2] for shape in shapes]).float()
        if None not in fixed:
            if not network.is_dense:
                check_calibration_size(images.shape[2:], fixed, can_pad=False)
            height, width = fixed
            images = pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
            sizes = sizes.minimum(torch.tensor(fixed))
        inputs = network.make_inputs(images, sizes)
        yield tuple(torch.cat([part] * (batch_size or 1)) for part in inputs)


def make_metadata(
    args: Namespace,
    cfg: Config,
    network: Exportable,
    checkpoint: dict[str, Any],
    axes: Sequence[int | None],
    divisor: int,
) -> dict[str, Any]:
    """Return the metadata for using the file without the config, such as the preprocessing.

    ``axes`` are the axes of the images, None for dynamic ones, of which ``divisor`` must divide
    height and width.
    """
    _, preprocessor = find_preprocessor(cfg)
    swaps = any(preprocessor.get(name) for name in ('to_rgb', 'bgr_to_rgb', 'rgb_to_bgr'))
    pipeline = [step for step in find_test_pipeline(cfg) if not type_name(step).startswith('Pack')]
    # The images of data sets without files, such as CIFAR, are RGB.
    is_rgb = swaps == any(type_name(step).startswith('Load') for step in pipeline)
    weights = Path(args.checkpoint)
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
    test_cfg = cfg.model.get('test_cfg') or {}
    return dict(
        format=FORMAT,
        version=__version__,
        task=network.task,
        model=type_name(cfg.model),
        config=Path(args.config).name,
        checkpoint=dict(file=weights.name, sha256=checksum),
        classes=find_dataset_meta(checkpoint.get('meta')).get('classes') or find_classes(cfg),
        score_threshold=(test_cfg.get('rcnn') or test_cfg).get('score_thr'),
        input=dict(
            shape=axes,
            channels={1: 'GRAY', 3: 'RGB' if is_rgb else 'BGR'}.get(axes[1] or 0),
            mean=preprocessor.get('mean'),
            std=preprocessor.get('std'),
            pad_size_divisor=math.lcm(find_pad_divisor(cfg), divisor),
            pad_value=preprocessor.get('pad_value', preprocessor.get('pad_val', 0)),
            pipeline=Config(dict(pipeline=pipeline)).to_dict()['pipeline'],
        ),
        **network.metadata,
    )


def find_classes(cfg: Config) -> Sequence[str] | None:
    """Return the names of the classes of the test data, None if the config does not say."""
    return DatasetInfo(list_dataset_configs(cfg, 'test')[0]).classes or None


def verify(
    args: Namespace,
    network: Exportable,
    path: Path,
    inputs: tuple[Tensor, ...],
    axes: Sequence[int | None],
    divisor: int,
) -> None:
    """Compare the file with the network, on larger images too along dynamic axes.

    Raises:
        ConfigError: If the difference exceeds the tolerance.
    """
    session: Any = load_exported(path, trust=True)
    if args.to == 'coreml' and platform.system() != 'Darwin':
        operators = ', '.join(f'{n} {name}' for name, n in session.operators.most_common())
        print(f'Inputs {session.inputs}, outputs {session.outputs}, operators: {operators}.')
        print('Core ML runs on macOS only, so the outputs were not compared.')
        return
    examples = [inputs]
    if None in axes:
        extra = (1, 0, round_up(33, divisor), round_up(70, divisor))
        sides = zip(axes, inputs[0].shape, extra, strict=True)
        larger = [side + more if axis is None else side for axis, side, more in sides]
        examples.append(network.make_inputs(make_noise(*larger)))
    differences = [compare(network, session, example) for example in examples]
    difference = float(np.max(differences))  # unlike Python's max(), NaN if there is any
    print(f'Largest difference from PyTorch: {difference:.2e} {network.unit}.')
    target = find_target(args.to)
    if hasattr(target, 'count_undelegated'):
        counts = target.count_undelegated(path)
        others = ', '.join(f'{n} {name}' for name, n in counts.most_common())
        print(f'Operators that XNNPACK does not run: {others or "none"}.')
    if math.isnan(difference):
        raise ConfigError(
            'The file was not written, since its outputs are NaN. Use float32, or another version '
            'of the runtime.'
        )
    if args.dtype == 'int8' or (network.is_dense and args.dtype != 'float32'):
        print(f'Evaluate its accuracy with: tools/test.py {args.config} {args.out}')
        return
    tolerance = TOLERANCES.get(args.dtype, network.tolerance)
    if difference > tolerance:
        raise ConfigError(
            f'The file was not written, since its outputs differ from PyTorch by {difference:.2e}, '
            f'more than {tolerance:.0e}. Use float32, or another version of the runtime.'
        )
