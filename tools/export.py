"""Export a classifier, a detector or a backbone for another runtime, and check the file."""

import argparse
import os
from pathlib import Path

import mmengine
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.deploy import TARGETS, export, fold, load_exported
from mmevit.deploy.evaluation import TASKS
from mmevit.deploy.exporting import choose_dynamic, compare
from mmevit.deploy.networks import network_of
from mmevit.engine import ConfigError
from mmevit.engine.checks import find_datasets, type_name
from mmevit.engine.hooks import check_fit
from mmevit.engine.launch import (
    add_config_arguments,
    build_model,
    check_checkpoint,
    one_sentence_errors,
    read_config,
)

# Largest difference, relative to the largest output, that an export is let pass with.
TOLERANCES = dict(float32=1e-4, float16=2e-2, bfloat16=1e-1)


def parse_args():
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
        '--size', type=int, nargs='+', metavar='PIXELS', help='side, or height and width'
    )
    parser.add_argument('--batch-size', type=int, default=2, help='images of a batch')
    parser.add_argument(
        '--dynamic',
        nargs='+',
        choices=['batch', 'size', 'none'],
        help='what may be others later; the batch unless given, where the target knows that',
    )
    parser.add_argument(
        '--dtype', choices=[*TOLERANCES, 'int8'], default='float32', help='type to compute in'
    )
    parser.add_argument(
        '--calibration-images', type=int, default=256, help='training images that int8 looks at'
    )
    add_config_arguments(parser)
    args = parser.parse_args()
    args.out = args.out or 'model' + TARGETS[args.to]
    if args.dtype == 'int8' and (args.to != 'onnx' or args.part != 'model'):
        parser.error('--dtype int8 is for whole classifiers in ONNX, which other runtimes read.')
    if args.size and len(args.size) > 2:
        parser.error('--size takes a side, or a height and a width.')
    return args


def main():
    """Build the model, write the file, and compare the two."""
    args = parse_args()
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    check_checkpoint(args.checkpoint)
    dynamic = args.dynamic and set(args.dynamic) - {'none'}
    dynamic = choose_dynamic(args.to, dynamic)
    cfg = read_config(args.config, args.cfg_options)
    model, checkpoint = load_model(cfg, args.checkpoint)
    network = network_of(fold(model), args.part)

    height, width = (args.size[0], args.size[-1]) if args.size else guess_size(cfg)
    inputs = make_inputs(network, args.batch_size, height, width)
    metadata = describe(args, cfg, checkpoint, inputs, dynamic)
    dtype = 'float32' if args.dtype == 'int8' else args.dtype
    print(f'Exporting to {args.out}; compiling takes minutes for aoti, seconds for the others.')
    export(network, inputs, args.out, args.to, dynamic, dtype, metadata)
    if args.dtype == 'int8':
        from mmevit.deploy.quantization import quantize

        quantize(args.out, calibration_batches(cfg, model, args.calibration_images))
    report(args, network, inputs, metadata)


def load_model(cfg, path):
    """Build the model of a config and load a checkpoint.

    Args:
        cfg (Config): The config.
        path (str): The checkpoint.

    Returns:
        tuple[nn.Module, dict]: The model, in evaluation mode, and the checkpoint.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
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
    for step in test_pipeline(cfg):
        if type_name(step) == 'CenterCrop':
            size = (step.crop_size,) * 2 if isinstance(step.crop_size, int) else step.crop_size
        elif type_name(step) == 'Resize':
            size = (step.scale,) * 2 if isinstance(step.scale, int) else step.scale[::-1]
    if size is None:
        raise ConfigError('The test pipeline does not say the size of its images: give --size.')
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    return tuple(-(-side // divisor) * divisor for side in size)


def test_pipeline(cfg):
    """Find the pipeline that test images take."""
    return next(find_datasets(cfg.test_dataloader.dataset)).pipeline


def make_inputs(network, batch_size, height, width):
    """Make example inputs: noise, and for detectors the sizes inside the padding."""
    images = torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))
    if 'boxes' not in network.output_names:
        return (images,)
    return images, torch.tensor([[height, width]] * batch_size, dtype=torch.float32)


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
    pipeline = [step for step in test_pipeline(cfg) if not type_name(step).startswith('Pack')]
    return dict(
        task=TASKS.get(cfg.get('default_scope')) if args.part == 'model' else 'features',
        config=Path(args.config).name,
        classes=checkpoint.get('meta', {}).get('dataset_meta', {}).get('classes'),
        input=dict(
            shape=shape,
            channels='RGB' if is_rgb else 'BGR',
            mean=preprocessor.get('mean'),
            std=preprocessor.get('std'),
            pad_size_divisor=preprocessor.get('pad_size_divisor', 1),
            pipeline=mmengine.Config(dict(pipeline=pipeline)).to_dict()['pipeline'],
        ),
    )


def calibration_batches(cfg, model, num_images):
    """Read training images as test images are read.

    Args:
        cfg (Config): The config.
        model (nn.Module): The model, for its data preprocessor.
        num_images (int): How many images.

    Yields:
        Tensor: Sixteen images (16, 3, H, W), normalised.
    """
    config = next(find_datasets(cfg.train_dataloader.dataset)).copy()
    config.pipeline = test_pipeline(cfg)
    dataset = DATASETS.build(config)
    # Spread over the data, which may be sorted by class.
    chosen = torch.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).long().tolist()
    for start in mmengine.track_iter_progress(range(0, len(chosen), 16)):
        batch = pseudo_collate([dataset[index] for index in chosen[start : start + 16]])
        yield model.data_preprocessor(batch)['inputs']


def report(args, network, inputs, metadata):
    """Compare the file with the model, and say what it is.

    Args:
        args (argparse.Namespace): The parsed command line.
        network (nn.Module): What was exported.
        inputs (tuple[Tensor]): Example inputs.
        metadata (dict): What is kept in the file.

    Raises:
        ConfigError: If it differs by more than its type explains; it is removed then.
    """
    session = load_exported(args.out)
    print(f'Wrote {args.out}, inputs {metadata["input"]["shape"]}.')
    if args.to == 'coreml':
        operators = ', '.join(f'{n} {name}' for name, n in session.operators.most_common())
        print(f'Inputs {session.inputs}, outputs {session.outputs}, operators: {operators}.')
        print('Core ML runs on macOS only, so the numbers were not compared here.')
        return
    difference = compare(network, session, inputs)
    print(f'Largest difference from PyTorch: {difference:.2e} of the largest output.')
    if args.dtype == 'int8':
        print(f'Its accuracy tells whether that is good: tools/test.py {args.config} {args.out}')
    elif difference > TOLERANCES[args.dtype]:
        os.remove(args.out)
        raise ConfigError(
            f'{args.out} differs from PyTorch by {difference:.2e}, more than '
            f'{TOLERANCES[args.dtype]:.0e}, and was removed.'
        )


if __name__ == '__main__':
    with one_sentence_errors():
        main()
