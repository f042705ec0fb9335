"""Fine-tune a classifier, a detector or a segmentor on your own images.

For a classifier, put the images of each class into a folder. For a detector, pass a folder with
images and labels in COCO, Pascal VOC, YOLO or LabelMe format, for a segmentor one with images and
masks. The folder is not changed.
"""

from argparse import ArgumentError, Namespace
from pathlib import Path

from mmevit.checks import check_config
from mmevit.cli import finetune_classifier, finetune_detector, finetune_segmentor
from mmevit.cli.arguments import (
    SizeAction,
    add_amp_argument,
    add_run_arguments,
    argument,
    command,
    flag,
    positive_int,
)
from mmevit.cli.convert_dataset import add_format_arguments
from mmevit.cli.finetune_recipe import print_commands, test_best
from mmevit.datasets.formats import LabelledData, complete_splits, read_labels
from mmevit.datasets.formats.files import SPLITS
from mmevit.engine.runner import build_trainer
from mmevit.utils.errors import ConfigError

TASKS = ('classification', 'detection', 'instance-segmentation', 'semantic-segmentation')


@command(
    add_run_arguments,
    argument('data', 'folder with the images'),
    argument('--task', 'what to train (default: what the labels are for)', choices=TASKS),
    argument(
        '--model',
        'detector or segmentor, such as rtmdet_evit_m4, a config of your own or '
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py (default: for the task and the arch of '
        '--weights, else m1 on a CPU and m4 on a GPU)',
    ),
    argument(
        '--weights',
        'evit://m0 to evit://m5, hf://OWNER/REPO or a checkpoint, from which the arch is inferred; '
        'none for random weights, except of classifiers (default: evit://m5 for classifiers, else '
        'those of --model)',
    ),
    argument('--epochs', 'number of epochs', type=positive_int),
    argument(
        '--minutes',
        'choose image size and epochs so that training takes about as many minutes on this '
        'machine; not for classifiers',
        type=positive_int,
    ),
    argument('--batch-size', 'images per step and process', type=positive_int),
    argument(
        '--image-size',
        'side of the images, or height and width, in pixels (default: 224 for classifiers, else '
        'that of the data, at most 640)',
        action=SizeAction,
    ),
    add_amp_argument,
    flag('--no-flip', 'do not flip images, for classes that a flip changes, such as text'),
    add_format_arguments,
)
def main(args: Namespace) -> None:
    """Complete the config, check it, train, and evaluate the best checkpoint."""
    root = Path(args.data).resolve()
    args.work_dir = args.work_dir or f'work_dirs/{root.name}'
    work_dir = Path(args.work_dir).resolve()
    if work_dir.is_relative_to(root):
        raise ConfigError(
            f'The work directory {work_dir} is inside the data {root}. Set another with --work-dir.'
        )
    labels = None
    if args.task != 'classification':
        prefers_maps = args.task == 'semantic-segmentation'
        labels = read_labels(args.data, args.format, prefers_maps)
    if labels is None:
        finetune_classes(args)
    else:
        finetune_labelled(args, labels)


def finetune_classes(args: Namespace) -> None:
    """Train a classifier."""
    if args.task not in ('classification', None):
        raise ConfigError(
            f'{args.data} contains no labels for {args.task}. Pass images with labels.'
        )
    for option in ('model', 'minutes', 'format'):
        if getattr(args, option) is not None:
            raise ArgumentError(None, f'--{option} is not for class folders.')
    cfg = finetune_classifier.prepare(args)
    check_config(cfg, ('train', 'val'))
    runner = build_trainer(cfg)
    runner.train()
    if runner.rank == 0:
        finetune_classifier.report(runner)


def finetune_labelled(args: Namespace, data: LabelledData) -> None:
    """Train a detector or a segmentor; the default task depends on the labels."""
    if args.minutes and args.launcher != 'none':
        raise ArgumentError(None, '--minutes is for a single process. Give --epochs.')
    task = args.task or default_task(data)
    if task == 'instance-segmentation' and not data.has_masks:
        raise ConfigError(
            f'{args.data} has objects without masks, such as boxes. Outline them too, or train '
            'boxes with --task detection.'
        )
    if data.is_semantic and task != 'semantic-segmentation':
        raise ConfigError(
            f'{args.data} has segmentation maps, which do not tell one object from another. Train '
            'on them with --task semantic-segmentation.'
        )
    print(f'Task: {task}')
    data = complete_splits(data, args.val_fraction)
    if task == 'semantic-segmentation':
        cfg, report = finetune_segmentor.prepare(args, data), finetune_segmentor.report
    else:
        cfg = finetune_detector.prepare(args, data, with_masks=task == 'instance-segmentation')
        report = finetune_detector.report
    check_config(cfg, SPLITS)
    runner = build_trainer(cfg)
    runner.train()
    checkpoint, scores = test_best(runner)
    if runner.rank == 0:
        print(f'The checkpoint: {checkpoint}')
        report(runner, scores)
        print_commands(runner, checkpoint)


def default_task(data: LabelledData) -> str:
    """Choose the task that fits the labels."""
    if data.is_semantic:
        return 'semantic-segmentation'
    return 'instance-segmentation' if data.has_masks else 'detection'
