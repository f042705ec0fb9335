"""Fine-tune a classifier on your own images, a folder for each class."""

import json
from pathlib import Path

from mmevit.checkpoint import forbid_code_in_checkpoints, load_from_evit
from mmevit.datasets import split_class_folders
from mmevit.engine import ConfigError, check_config
from mmevit.engine.checks import type_name
from mmevit.engine.launch import build_runner, common_parser, load_config, one_sentence_errors
from mmevit.files import written_whole
from mmevit.models import EfficientViT
from mmevit.models.efficientvit import likely_arch

CONFIG = Path(__file__).parents[1] / 'configs/evit_m5_finetune.py'


def parse_args():
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument(
        'data', help='folder of class folders, or of train and val that hold class folders'
    )
    parser.add_argument('--config', default=str(CONFIG), help='config file to start from')
    parser.add_argument(
        '--weights',
        default='evit://m5',
        help='evit://m0 to evit://m5, or a checkpoint; the network is the one that it is of',
    )
    parser.add_argument('--epochs', type=int, help='number of epochs, 20 unless given')
    parser.add_argument('--batch-size', type=int, help='images a step and process, 32 unless given')
    parser.add_argument('--image-size', type=int, help='side in pixels, 224 unless given')
    parser.add_argument(
        '--no-flip', action='store_true', help='for what differs from its mirror image, as text'
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.2,
        help='fraction of each class to validate with, where there is no folder val',
    )
    return parser.parse_args()


def main():
    """Fill in the config, check everything that can be checked, then train."""
    args = parse_args()
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    args.work_dir = args.work_dir or f'work_dirs/{Path(args.data).resolve().name}'
    splits = ('train', 'val')
    cfg = load_config(args, splits, needs=('model', 'train_dataloader', 'optim_wrapper'))
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
    runner = build_runner(cfg)
    runner.train()
    if runner.rank == 0:
        report(cfg, classes)


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
    classes, train, val = split_class_folders(args.data, args.val_fraction)
    root = str(Path(args.data).resolve())
    # The config that is kept is for inference too: its test data are the ones of validation.
    for split, images in dict(train=train, val=val, test=val).items():
        path = Path(cfg.work_dir, f'{split}_images.txt').resolve()
        with written_whole(path) as part:
            part.write_text(''.join(f'{name} {label}\n' for name, label in images))
        dataloader = cfg[f'{split}_dataloader']
        # No more than there are: a batch that is not full is left out of training.
        dataloader.batch_size = min(args.batch_size or dataloader.batch_size, len(images))
        dataset = dataloader.dataset
        dataset.update(data_root=root, ann_file=str(path), metainfo=dict(classes=classes))
        if args.no_flip:
            dataset.pipeline = [
                step for step in dataset.pipeline if type_name(step) != 'RandomFlip'
            ]
        if args.image_size:
            resize(dataset.pipeline, args.image_size)
    return classes


def resize(pipeline, size):
    """Have a pipeline give square images of a size.

    Args:
        pipeline (list[dict]): The pipeline, which is changed.
        size (int): Side in pixels.
    """
    for step in pipeline:
        if type_name(step) == 'RandomResizedCrop':
            step.scale = size
        elif type_name(step) == 'Resize':
            step.scale = (size, size)


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
    backbone = {
        name.removeprefix('backbone.'): weight
        for name, weight in load_from_evit(weights)['state_dict'].items()
        if name.startswith('backbone.')
    }
    arch = likely_arch(backbone)
    if arch is None:
        raise ConfigError(
            f'{weights} has no weights of {", ".join(EfficientViT.arch_zoo)}: give a classifier '
            'or detector with one of them as its backbone.'
        )
    window_areas = {
        int(name.split('.')[1]): table.shape[1]
        for name, table in backbone.items()
        if name.endswith('attention_biases')
    }
    cfg.model.backbone.update(
        arch=arch, window_sizes=[round(area**0.5) for _, area in sorted(window_areas.items())]
    )
    cfg.model.backbone.init_cfg.checkpoint = weights
    cfg.model.head.update(
        num_classes=num_classes, in_channels=EfficientViT.arch_zoo[arch]['embed_dims'][-1]
    )
    cfg.data_preprocessor.num_classes = num_classes


def report(cfg, classes):
    """Say where the model is and how to use it.

    Args:
        cfg (Config): The config.
        classes (Sequence[str]): The names of the classes.
    """
    config = Path(cfg.work_dir, Path(cfg.filename).name)
    checkpoint = max(Path(cfg.work_dir).glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    print(f'The classes:    {json.dumps(classes, ensure_ascii=False)}')
    print(f'The checkpoint: {checkpoint}')
    print('To name a picture in Python:')
    print('    from mmpretrain import ImageClassificationInferencer')
    print(f'    name = ImageClassificationInferencer({str(config)!r}, {str(checkpoint)!r})')
    print("    name('picture.jpg')[0]['pred_class'], name('picture.jpg')[0]['pred_score']")


if __name__ == '__main__':
    with one_sentence_errors():
        main()
