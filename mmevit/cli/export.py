"""Export a classifier, a detector or a backbone for another runtime, and check the file."""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

import mmengine
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint, find_dataset_meta
from mmevit.checkpoint.matching import check_fit
from mmevit.checks import check_config
from mmevit.checks.data import check_data
from mmevit.cli.arguments import SizeAction, add_config_arguments
from mmevit.cli.errors import one_sentence_errors
from mmevit.datasets.sampling import find_test_pipeline, sample_images
from mmevit.deploy import TARGETS, export, load_exported, try_to_fold
from mmevit.deploy.evaluation import TASKS
from mmevit.deploy.exporting import choose_dynamic, compare
from mmevit.deploy.networks import count_input_channels, network_of
from mmevit.utils.configs import build_model, read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write, check_ending

# Largest difference, relative to the largest output, that an export is let pass with.
TOLERANCES = dict(float32=1e-4, float16=2e-2, bfloat16=1e-1)
# What can find the boxes inside the file.
DETECTOR_TARGETS = ('onnx', 'openvino')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, of mmdet or mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--to', choices=TARGETS, default='onnx', help='what to write')
    parser.add_argument('--out', metavar='FILE', help='file to write, model.* unless given')
    parser.add_argument(
        '--part', choices=['model', 'backbone'], default='model', help='the whole, or feature maps'
    )
    parser.add_argument(
        '--size', action=SizeAction, help="of the images, the test pipeline's unless given"
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images, if not dynamic')
    parser.add_argument(
        '--dynamic',
        nargs='+',
        choices=['batch', 'size', 'none'],
        help='what may be others later; unless given the batch where the target knows that, and '
        'for detectors the size',
    )
    parser.add_argument(
        '--dtype', choices=[*TOLERANCES, 'int8'], default='float32', help='type to compute in'
    )
    parser.add_argument(
        '--calibration-images', type=int, default=256, help='training images that int8 looks at'
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    args.out = args.out or 'model' + TARGETS[args.to]
    if min(args.calibration_images, args.batch_size) < 1:
        parser.error('--calibration-images and --batch-size take 1 or more.')
    return args


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Build the model, write the file, and compare the two."""
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
    network = network_of(try_to_fold(model), args.part)
    is_detector = 'boxes' in network.output_names
    if is_detector and args.to not in DETECTOR_TARGETS:
        raise ConfigError(
            f'Detectors go to {" and ".join(DETECTOR_TARGETS)} as a whole: for {args.to} give '
            '--part backbone.'
        )
    dynamic = choose_dynamic(args.to, choose_wanted(args, is_detector))
    if is_detector and args.dtype == 'int8' and 'size' not in dynamic:
        raise ConfigError('int8 looks at images of all sizes: give --dynamic batch size.')

    size = args.size or guess_size(cfg)
    if min(size) < 32:
        raise ConfigError(
            f'The images are {size[0]}x{size[1]} pixels, and exported files take 32 pixels and up. '
            'Give a larger --size.'
        )
    shape = (args.batch_size, count_input_channels(network), *size)
    inputs = make_inputs(is_detector, shape)
    batches = calibration_batches(cfg, model, args.calibration_images, is_detector)
    metadata = describe(args, cfg, checkpoint, inputs, dynamic)
    print(f'Exporting to {args.out}; compiling takes minutes for aoti, about one for the others.')
    with atomic_write(args.out) as file:
        export(network, inputs, file, args.to, dynamic, args.dtype, metadata, batches)
        check(args, network, file, inputs, dynamic)
    print(f'Wrote {args.out}, inputs {metadata["input"]["shape"]}.')


def load_model(cfg, path):
    """Build the model of a config and load a checkpoint.

    Args:
        cfg (Config): The config.
        path (str): The checkpoint.

    Returns:
        tuple[nn.Module, dict]: The model, in evaluation mode, and the checkpoint.
    """
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)
    model = build_model(cfg)
    checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu')
    check_fit(model, checkpoint)
    load_checkpoint(model, path, map_location='cpu')
    return model.eval(), checkpoint


def guess_size(cfg):
    """Tell the size of the images that the test pipeline gives.

    Args:
        cfg (Config): The config.

    Returns:
        tuple[int, int]: Height and width, padded as for the model.

    Raises:
        ConfigError: If the pipeline does not say.
    """
    size = None
    for step in find_test_pipeline(cfg):
        if type_name(step) == 'CenterCrop':
            size = step.crop_size
        elif type_name(step) == 'Resize':
            size = step.get('scale')
    if size is None:
        raise ConfigError('The test pipeline does not say the size of its images: give --size.')
    width, height = (size, size) if isinstance(size, int) else size
    preprocessor = cfg.model.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor', 1)
    return tuple(-(-side // divisor) * divisor for side in (height, width))


def choose_wanted(args, is_detector):
    """Choose what is to be dynamic: images of detectors are of all sizes, unless it is said."""
    if args.dynamic:
        return set(args.dynamic) - {'none'}
    return {'batch', 'size'} if is_detector else None


def make_inputs(is_detector: bool, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """Make example inputs: noise (N, C, H, W), and for detectors the sizes inside the padding."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([shape[2:]] * shape[0]).float()
    return (images, sizes) if is_detector else (images,)


def describe(args, cfg, checkpoint, inputs, dynamic):
    """Describe what is needed for using the file alone.

    Args:
        args (argparse.Namespace): The parsed command line.
        cfg (Config): The config.
        checkpoint (dict): The checkpoint, which knows the names of the classes.
        inputs (tuple[Tensor]): Example inputs.
        dynamic (set[str]): What may be others later.

    Returns:
        dict: The task, the classes, and how an image becomes an input.
    """
    preprocessor = cfg.model.get('data_preprocessor') or {}
    shape = list(inputs[0].shape)
    shape[0] = None if 'batch' in dynamic else shape[0]
    shape[2:] = (None, None) if 'size' in dynamic else shape[2:]
    is_rgb = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    pipeline = [step for step in find_test_pipeline(cfg) if not type_name(step).startswith('Pack')]
    return dict(
        task=TASKS.get(cfg.get('default_scope')) if args.part == 'model' else 'features',
        config=Path(args.config).name,
        classes=find_dataset_meta(checkpoint.get('meta')).get('classes'),
        input=dict(
            shape=shape,
            channels={1: 'GRAY', 3: 'RGB' if is_rgb else 'BGR'}.get(shape[1]),
            mean=preprocessor.get('mean'),
            std=preprocessor.get('std'),
            pad_size_divisor=preprocessor.get('pad_size_divisor', 1),
            pipeline=mmengine.Config(dict(pipeline=pipeline)).to_dict()['pipeline'],
        ),
    )


def calibration_batches(cfg, model, num_images, is_detector):
    """Read training images as test images are read.

    Args:
        cfg (Config): The config.
        model (nn.Module): The model, for its data preprocessor.
        num_images (int): How many images.
        is_detector (bool): Whether the sizes inside the padding are inputs too.

    Yields:
        tuple[Tensor]: One image, (1, C, H, W), normalised, and its size (1, 2).
    """
    for batch in sample_images(cfg, model, 'train', num_images):
        sizes = torch.tensor([sample.img_shape[:2] for sample in batch['data_samples']]).float()
        yield (batch['inputs'], sizes) if is_detector else (batch['inputs'],)


def check(args, network, path, inputs, dynamic):
    """Compare the file with the model, and say how much they differ.

    Args:
        args (argparse.Namespace): The parsed command line.
        network (nn.Module): What was exported.
        path (Path): The file.
        inputs (tuple[Tensor]): Example inputs.
        dynamic (set[str]): What may be others than in the example.

    Raises:
        ConfigError: If they differ by more than the type explains.
    """
    session = load_exported(path, trust=True)
    if args.to == 'coreml' and platform.system() != 'Darwin':
        operators = ', '.join(f'{n} {name}' for name, n in session.operators.most_common())
        print(f'Inputs {session.inputs}, outputs {session.outputs}, operators: {operators}.')
        print('Core ML runs on macOS only, so the numbers were not compared here.')
        return
    examples = [inputs, other_inputs(inputs, dynamic)] if dynamic else [inputs]
    differences = [compare(network, session, example) for example in examples]
    # Unlike Python's max(), this does not lose a NaN.
    difference = float(torch.tensor(differences).max())
    print(f'Largest difference from PyTorch: {difference:.2e} of the largest output.')
    if len(inputs) > 1:
        with torch.no_grad():
            count = int((network(*inputs)[2] >= 0).sum())
        print(f'{count} boxes, found in an image of noise, were compared.')
    is_measured_by_accuracy = args.dtype == 'int8' or (len(inputs) > 1 and args.dtype != 'float32')
    if is_measured_by_accuracy:
        print(f'Its accuracy tells whether that is good: tools/test.py {args.config} {args.out}')
    tolerance = float('inf') if is_measured_by_accuracy else TOLERANCES[args.dtype]
    if not difference <= tolerance:
        raise ConfigError(
            f'The file differed from PyTorch by {difference:.2e}, more than {tolerance:.0e}, and '
            'was not kept.'
        )


def other_inputs(inputs, dynamic):
    """Make example inputs of another batch and size, as far as these are dynamic."""
    batch_size, num_channels, height, width = inputs[0].shape
    if 'size' in dynamic:
        height, width = height + 33, width + 70
    batch_size += 'batch' in dynamic
    return make_inputs(len(inputs) > 1, (batch_size, num_channels, height, width))
