"""Fine-tune a classifier on your own images, a folder for each class."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmevit.checkpoint import forbid_code_in_checkpoints, load_from_evit
from mmevit.checkpoint.matching import infer_arch, infer_window_sizes, select_weights
from mmevit.checks import check_config
from mmevit.cli.arguments import common_parser, load_config
from mmevit.cli.errors import one_sentence_errors
from mmevit.datasets import split_class_folders
from mmevit.engine.runner import build_trainer
from mmevit.models import EfficientViT
from mmevit.utils.configs import MIM_FOLDER, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

# Where launchers other than torchrun say how many processes there are; mmengine does so later.
WORLD_SIZES = dict(slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument(
        'data', help='folder of class folders, or of train and val that hold class folders'
    )
    parser.add_argument(
        '--weights',
        default='evit://m5',
        help='evit://m0 to evit://m5, or a checkpoint; the network is the one that it is of',
    )
    parser.add_argument('--epochs', type=positive, help='number of epochs, 20 unless given')
    parser.add_argument(
        '--batch-size', type=positive, help='images a step and process, 32 unless given'
    )
    parser.add_argument('--image-size', type=positive, help='side in pixels, 224 unless given')
    parser.add_argument(
        '--no-flip', action='store_true', help='for what differs from its mirror image, as text'
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.2,
        help='fraction of each class to validate with, where there is no folder val',
    )
    args = parser.parse_args(argv)
    args.config = MIM_FOLDER / 'configs/efficientvit/evit_m5_finetune.py'
    args.work_dir = args.work_dir or f'work_dirs/{Path(args.data).resolve().name}'
    return args


def positive(text):
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text} is no whole number above 0')
    return int(text)


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Fill in the config, check everything that can be checked, then train."""
    args = parse_args(argv)
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    splits = ('train', 'val')
    cfg = load_config(args, splits, needs=())
    classes = set_data(cfg, args)
    set_model(cfg, args.weights, len(classes))
    if args.epochs:
        cfg.train_cfg.max_epochs = args.epochs
        # A single epoch is all warm-up.
        cfg.param_scheduler = [
            scheduler
            for scheduler in cfg.param_scheduler
            if scheduler.get('begin', 0) < args.epochs
        ]
    check_config(cfg, splits)
    runner = build_trainer(cfg)
    runner.train()
    if runner.rank == 0:
        report(runner, classes)


def set_data(cfg, args):
    """Put the lists of images into the work directory, and the data into the config.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The parsed command line.

    Returns:
        tuple[str]: The names of the classes.

    Raises:
        ConfigError: If the data cannot be used.
    """
    root, work_dir = Path(args.data).resolve(), Path(cfg.work_dir).resolve()
    if work_dir.is_relative_to(root):
        raise ConfigError(
            f'The work directory {work_dir} lies in the data {root}: name another by --work-dir.'
        )
    classes, train, val = split_class_folders(root, args.val_fraction)
    for name, images in dict(train=train, val=val).items():
        items = [dict(img_path=path, gt_label=label) for path, label in images]
        with atomic_write(work_dir / f'{name}_images.json') as path:
            path.write_text(json.dumps(dict(metainfo=dict(classes=classes), data_list=items)))
    # The config that is kept is for inference too: its test data are the ones of validation.
    for split, name in dict(train='train', val='val', test='val').items():
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(
            data_root=str(root),
            ann_file=str(work_dir / f'{name}_images.json'),
            metainfo=dict(classes=classes),
        )
        dataset.pipeline = adapt(dataset.pipeline, args)
    cfg.tta_pipeline[-1].transforms = [
        steps
        for steps in (adapt(steps, args) for steps in cfg.tta_pipeline[-1].transforms)
        if steps
    ]
    set_batch_size(cfg.train_dataloader, args.batch_size, len(train), args.launcher)
    return classes


def adapt(pipeline, args):
    """Have a pipeline give images of the size, and without the flips, that were asked for.

    Args:
        pipeline (list[dict]): The pipeline, whose steps are changed.
        args (argparse.Namespace): The parsed command line.

    Returns:
        list[dict]: The pipeline.
    """
    size = args.image_size
    for step in pipeline:
        if size and type_name(step) == 'RandomResizedCrop':
            step.scale = size
        elif size and type_name(step) == 'Resize':
            step.scale = (size, size)
    return [step for step in pipeline if not (args.no_flip and type_name(step) == 'RandomFlip')]


def set_batch_size(dataloader, batch_size, num_images, launcher):
    """Choose no more images a step than there are, since a batch that is not full is left out.

    Args:
        dataloader (dict): Config of the data loader, which is changed.
        batch_size (int | None): The size that was asked for.
        num_images (int): Number of images that all processes share.
        launcher (str): What started the processes.

    Raises:
        ConfigError: If a batch would be of one image, on which batch norm cannot train.
    """
    num_processes = int(os.environ.get(WORLD_SIZES.get(launcher, 'WORLD_SIZE'), 1))
    batch_size = min(batch_size or dataloader.batch_size, num_images // num_processes)
    if batch_size < 2:
        raise ConfigError(
            f'{num_images} images to train on make batches of {batch_size} for each of '
            f'{num_processes} processes, but batch norm needs two or more: give more images, fewer '
            'processes, or a larger --batch-size.'
        )
    dataloader.batch_size = batch_size


def set_model(cfg, weights, num_classes):
    """Make the model the one that the weights are of.

    Args:
        cfg (Config): The config.
        weights (str): Name or path of the weights.
        num_classes (int): Number of classes.

    Raises:
        ConfigError: If they are not of an EfficientViT by name.
        CheckpointError: If they cannot be had or read.
    """
    if '://' not in weights:
        weights = f'evit://{Path(weights).expanduser().resolve()}'
    backbone = select_weights(load_from_evit(weights, 'cpu')['state_dict'], 'backbone.')
    arch, windows = infer_arch(backbone), infer_window_sizes(backbone)
    if arch is None or windows is None:
        raise ConfigError(
            f'{weights} has no weights to train of {", ".join(EfficientViT.arch_zoo)}: give a '
            'classifier or detector with one of them as its backbone, not folded.'
        )
    cfg.model.backbone.update(arch=arch, window_sizes=windows)
    cfg.model.backbone.init_cfg.checkpoint = weights
    cfg.model.head.in_channels = EfficientViT.arch_zoo[arch].embed_dims[-1]
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = num_classes


def report(runner, classes):
    """Say where the model is and how to use it.

    Args:
        runner (Runner): The runner, after training.
        classes (Sequence[str]): The names of the classes.
    """
    config = str(Path(runner.work_dir, Path(runner.cfg.filename).name))
    last = Path(runner.work_dir, 'last_checkpoint').read_text()
    checkpoint = runner.message_hub.runtime_info.get('best_ckpt') or last
    print(f'The network:    EfficientViT-{runner.cfg.model.backbone.arch}, as the weights are of')
    print(f'The classes:    {json.dumps(classes, ensure_ascii=False)}')
    print(f'The checkpoint: {checkpoint}')
    print('To name a picture in Python:')
    print('    from mmpretrain import ImageClassificationInferencer')
    print(f'    name = ImageClassificationInferencer({config!r}, {checkpoint!r})')
    print("    name('picture.jpg')[0]['pred_class'], name('picture.jpg')[0]['pred_score']")
