"""Fine-tuning of classifiers, for the command finetune."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmevit.checkpoint.loader import locate
from mmevit.cli.arguments import load_config, use_mixed_precision
from mmevit.cli.finetune_recipe import (
    find_best,
    infer_backbone,
    pipelines,
    remove_flips,
    set_batch_size,
)
from mmevit.datasets import split_class_folders
from mmevit.datasets.formats import FOLDERS_OF_DATA
from mmevit.models import EfficientViT
from mmevit.utils.configs import MIM_FOLDER, type_name
from mmevit.utils.errors import ConfigError, shorten
from mmevit.utils.files import atomic_write


def prepare(args: Namespace) -> Config:
    """Complete the config for class folders."""
    args.config = MIM_FOLDER / 'configs/efficientvit/evit_m5_finetune.py'
    cfg = load_config(args, ('train', 'val'), needs=())
    classes = set_data(cfg, args)
    set_model(cfg, args.weights or 'evit://m5', len(classes))
    if args.amp:
        use_mixed_precision(cfg)
    if args.epochs:
        cfg.train_cfg.max_epochs = args.epochs
        # With a single epoch there is only warm-up.
        cfg.param_scheduler = [
            scheduler
            for scheduler in cfg.param_scheduler
            if scheduler.get('begin', 0) < args.epochs
        ]
    return cfg


def set_data(cfg: Config, args: Namespace) -> Sequence[str]:
    """Write lists of images to the work directory, set them in the config; return the classes."""
    root, work_dir = Path(args.data).resolve(), Path(cfg.work_dir).resolve()
    classes, train, val = split_class_folders(root, args.val_fraction)
    if args.task is None:
        refuse_folders_of_data(root, classes)
    # The saved config is also used for inference. Its test data are the validation data.
    for name, images, splits in (('train', train, ['train']), ('val', val, ['val', 'test'])):
        ann_file = work_dir / f'{name}_images.json'
        items = [dict(img_path=path, gt_label=label) for path, label in images]
        with atomic_write(ann_file) as path:
            path.write_text(json.dumps(dict(metainfo=dict(classes=classes), data_list=items)))
        for split in splits:
            dataset = cfg[f'{split}_dataloader'].dataset
            dataset.update(data_root=str(root), ann_file=str(ann_file))
            dataset.metainfo = dict(classes=classes)
    if args.image_size:
        set_size(cfg, args.image_size)
    if args.no_flip:
        remove_flips(cfg)
    # Batch norm cannot train on one image.
    set_batch_size(cfg.train_dataloader, args, len(train), minimum=2)
    return classes


def refuse_folders_of_data(root: Path, classes: Sequence[str]) -> None:
    """Raise ConfigError if folders are probably not classes, by their names."""
    if FOLDERS_OF_DATA.intersection(map(str.lower, classes)):
        raise ConfigError(
            f'{root} has no labels that are known, and its folders {shorten(classes)} do not look '
            'like classes. Segmentation maps are PNG files of few values with the names of their '
            'images. If the folders are classes, pass --task classification.'
        )


def set_size(cfg: Config, size: tuple[int, int]) -> None:
    """Set the size of the images, which are square, in all pipelines."""
    side, width = size
    if side != width:
        raise ConfigError('Classifiers need square images. Give --image-size one side.')
    for steps in pipelines(cfg):
        for step in steps:
            if type_name(step) == 'RandomResizedCrop':
                step.scale = side
            elif type_name(step) == 'Resize':
                step.scale = size


def set_model(cfg: Config, weights: str, num_classes: int) -> None:
    """Set the arch and the windows that weights are of, and the number of classes."""
    weights = locate(weights)
    arch, windows = infer_backbone(weights)
    cfg.model.backbone.update(arch=arch, window_sizes=windows)
    cfg.model.backbone.init_cfg.checkpoint = weights
    cfg.model.head.in_channels = EfficientViT.arch_zoo[arch].embed_dims[-1]
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = num_classes


def report(runner: Runner) -> None:
    """Print where the model is and how to use it."""
    config = str(Path(runner.work_dir, Path(runner.cfg.filename).name))
    classes = runner.cfg.train_dataloader.dataset.metainfo.classes
    checkpoint = find_best(runner)
    print(
        f"""\
The network:    EfficientViT-{runner.cfg.model.backbone.arch}, inferred from the weights
The classes:    {json.dumps(classes, ensure_ascii=False)}
The checkpoint: {checkpoint}
To classify an image in Python:
    from mmpretrain import ImageClassificationInferencer
    classify = ImageClassificationInferencer({config!r}, {checkpoint!r})
    classify('picture.jpg')[0]['pred_class'], classify('picture.jpg')[0]['pred_score']"""
    )
