"""Fine-tuning of detectors, for the command finetune."""

import math
import shlex
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner

from mmevit.analysis import (
    count_confusions,
    evaluate_boxes,
    plot_confusions,
    plot_precision_recall,
)
from mmevit.checkpoint.loader import load_from_evit, locate
from mmevit.checkpoint.matching import infer_arch, select_weights
from mmevit.cli.arguments import load_config
from mmevit.cli.convert_dataset import summarise
from mmevit.datasets.formats import LabelledData, write_coco
from mmevit.datasets.loading import load_readable_images
from mmevit.models import EfficientViT
from mmevit.utils.configs import MIM_FOLDER, build_model, default_scope, read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

CONFIGS = MIM_FOLDER / 'configs/efficientvit'
SPLITS = ('train', 'val', 'test')
# Longest sides of images, of which --minutes chooses the largest that leaves enough epochs.
SIDES = (640, 512, 416, 320)
# Images to see in training, and the fewest and most epochs.
NUM_SEEN, MIN_EPOCHS, MAX_EPOCHS = 12_000, 12, 200
# Share of --minutes that is planned for: the machine may become slower.
PLANNED = 0.85
# Number of evaluations, and the time of one relative to training on the same images.
NUM_EVALUATIONS, EVALUATION = 10, 0.4
# Variables of the base config. Settings hold copies of them, which change here.
VARIABLES = ('backend_args', 'data_root', 'dataset_type', 'test_pipeline', 'train_pipeline')
# Files in the work directory.
DETECTIONS = 'detections'
PICTURES = ('precision_recall.png', 'confusions.png')


def prepare(args: Namespace, data: LabelledData, with_masks: bool) -> Config:
    """Write annotation files and a whole config to the work directory, and load it.

    Args:
        args: The arguments of the command.
        data: The labelled images, split.
        with_masks: Whether to train instance segmentation.
    """
    paths = write_coco(data, Path(args.work_dir, 'annotations'))
    print(summarise(data), flush=True)
    name, model = choose_model(args.model, args.weights, with_masks)
    cfg = read_config(CONFIGS / '_base_/finetune_detection.py', None)
    for variable in VARIABLES:
        cfg.pop(variable)
    cfg.model = model
    set_weights(cfg.model, args.weights)
    set_classes(cfg.model, len(data.classes))
    set_data(cfg, data, paths)
    set_batch_size(cfg, args.batch_size, len(data.splits['train']))
    if with_masks:
        add_masks(cfg)
    if args.no_flip:
        remove_flips(cfg)
    set_schedule(cfg, args, data)
    cfg.test_evaluator.outfile_prefix = str(Path(args.work_dir, DETECTIONS))
    path = Path(args.work_dir, f'{name}_finetune.py')
    with atomic_write(path) as unfinished:
        cfg.dump(unfinished)
    args.config = path
    return load_config(args, SPLITS, needs=())


def choose_model(name: str | None, weights: str | None, with_masks: bool) -> tuple[str, Any]:
    """Return the name and the model of a config."""
    arch = None
    if name is None:
        arch = find_arch(weights) or ('m1' if get_device() == 'cpu' else 'm4')
        # The only one for masks is adapted to the arch.
        name = 'rtmdet-ins_evit_m4' if with_masks else f'rtmdet_evit_{arch}'
    path = CONFIGS / f'{name}.py'
    cfg = read_config(path if path.is_file() else name, None, needs=['model'])
    if cfg.default_scope != 'mmdet':
        raise ConfigError(f'{name} is a config of {cfg.default_scope}. Pass a detector.')
    if arch is not None and arch not in name:
        name = name.replace('m4', arch)
        widths = EfficientViT.arch_zoo[arch].embed_dims
        cfg.model.backbone.arch = arch
        cfg.model.backbone.init_cfg.checkpoint = f'evit://{arch}'
        cfg.model.neck.in_channels = [widths[0] // 2, *widths]
    return Path(name.rpartition('::')[2]).stem, cfg.model


def find_arch(weights: str | None) -> str | None:
    """Return the arch of a checkpoint, None if the weights are those of the model, or random."""
    if weights in (None, 'none'):
        return None
    arch = infer_arch(select_weights(load_from_evit(locate(weights))['state_dict'], 'backbone.'))
    if arch is None:
        raise ConfigError(
            f'{weights} has no trainable weights of EfficientViT. Pass a classifier or detector '
            'with it as the backbone, not folded, or pass --model too.'
        )
    return arch


def set_weights(model: Any, weights: str | None) -> None:
    """Set the weights of the backbone: those of the model, of a checkpoint, or random ones."""
    if weights is None:
        return
    backbone = model.backbone
    backbone.init_cfg = None
    if weights == 'none':
        # Random layers are trained, and so are their statistics.
        kept = dict(norm_eval=False, frozen_stages=-1)
        backbone.update({key: value for key, value in kept.items() if key in backbone})
    else:
        backbone.init_cfg = dict(type='Pretrained', checkpoint=locate(weights), prefix='backbone.')


def set_classes(settings: Any, num_classes: int) -> None:
    """Set the number of classes of all heads of a model."""
    for value in settings.values() if isinstance(settings, dict) else settings:
        if isinstance(value, (dict, list, tuple)):
            set_classes(value, num_classes)
    if isinstance(settings, dict) and 'num_classes' in settings:
        settings['num_classes'] = num_classes


def set_data(cfg: Config, data: LabelledData, paths: Mapping[str, Path]) -> None:
    """Set data and evaluators; without a split for testing, that for validation."""
    for split in SPLITS:
        ann_file = str(paths.get(split, paths['val']).resolve())
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=f'{data.root.resolve()}/',
            ann_file=ann_file,
            data_prefix=dict(img=''),
            metainfo=dict(classes=data.classes),
        )
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = ann_file


def set_batch_size(cfg: Config, batch_size: int | None, num_images: int) -> None:
    """Set the batch size, at most the number of images; the learning rate follows."""
    cfg.auto_scale_lr.enable = True
    cfg.train_dataloader.batch_size = min(batch_size or cfg.train_dataloader.batch_size, num_images)


def pipelines(cfg: Config) -> Iterator[list[Any]]:
    """Yield the pipelines of the data, and each part of that of test-time augmentation."""
    for split in SPLITS:
        yield cfg[f'{split}_dataloader'].dataset.pipeline
    yield from cfg.tta_pipeline[-1].transforms


def add_masks(cfg: Config) -> None:
    """Load masks, and evaluate them too."""
    for steps in pipelines(cfg):
        for step in steps:
            if type_name(step) == 'LoadAnnotations':
                step.with_mask = True
    steps = cfg.train_dataloader.dataset.pipeline
    steps.insert(-1, dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), by_mask=True))
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].metric = ['bbox', 'segm']
    cfg.default_hooks.checkpoint.save_best = 'coco/segm_mAP'


def remove_flips(cfg: Config) -> None:
    """Remove random flips in place."""
    for steps in pipelines(cfg):
        steps[:] = [step for step in steps if type_name(step) != 'RandomFlip']
    views = cfg.tta_pipeline[-1]
    views.transforms = [steps for steps in views.transforms if steps]


def set_size(cfg: Config, size: tuple[int, int]) -> None:
    """Set the height and the width of the images in all pipelines."""
    width_first = size[::-1]
    for steps in pipelines(cfg):
        for step in steps:
            if type_name(step) in ('RandomResize', 'Resize'):
                step.scale = width_first
            elif type_name(step) == 'RandomCrop':
                step.crop_size = size
            elif type_name(step) == 'Pad':
                step.size = width_first


def choose_size(data: LabelledData, side: int) -> tuple[int, int]:
    """Choose the height and the width of images whose longest side is limited.

    They have the shape of most images, or are square if some are upright and others not, in
    multiples of 32.
    """
    sides = np.array([(image.height, image.width) for image in data.splits['train']])
    height, width = np.median(sides, axis=0)
    if 0.1 < np.mean(sides[:, 0] > sides[:, 1]) < 0.9:
        height = width = np.median(sides.max(axis=1))
    scale = min(side / max(height, width), 1)
    height, width = (max(32 * round(value * scale / 32), 32) for value in (height, width))
    return height, width


def set_schedule(cfg: Config, args: Namespace, data: LabelledData) -> None:
    """Set image size, epochs and warm-up, in ``args.minutes`` if given."""
    num_train, num_val = len(data.splits['train']), len(data.splits['val'])
    epochs = args.epochs or round(np.clip(NUM_SEEN / num_train, MIN_EPOCHS, MAX_EPOCHS))
    sizes = [args.image_size] if args.image_size else [choose_size(data, side) for side in SIDES]
    for size in sizes:
        set_size(cfg, size)
        if args.minutes is None:
            break
        seconds = time_training_image(cfg)
        evaluation = EVALUATION * seconds * (NUM_EVALUATIONS + 1) * num_val
        possible = (60 * PLANNED * args.minutes - evaluation) / (seconds * num_train)
        print_log(
            f'{size[0]} x {size[1]} pixels: {1000 * seconds:.0f} ms for a training image, '
            f'{max(possible, 0):.1f} epochs in {args.minutes} minutes.',
            'current',
        )
        if possible >= epochs or size == sizes[-1]:
            epochs = args.epochs or max(int(possible), 1)
            break
    steps = math.ceil(num_train / cfg.train_dataloader.batch_size)
    cfg.train_cfg.update(max_epochs=epochs, val_interval=math.ceil(epochs / NUM_EVALUATIONS))
    warm_up = cfg.param_scheduler[0]
    warm_up.end = min(warm_up.end, math.ceil(steps * epochs / 5))


def time_training_image(cfg: Config, num_warm_up: int = 2, num_steps: int = 4) -> float:
    """Return the seconds that training takes for an image on this machine."""
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.init_cfg = None
    load_readable_images(cfg.train_dataloader.dataset, on_error='skip')
    with default_scope(cfg):
        model: Any = build_model(cfg).to(get_device()).train()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        loader = Runner.build_dataloader(dict(cfg.train_dataloader, persistent_workers=False))
        start, count = 0.0, 0
        while True:
            for batch in loader:
                model.train_step(batch, optimizer)
                count += 1
                if count == num_warm_up:
                    start = time.perf_counter()
                elif count == num_warm_up + num_steps:
                    return (
                        (time.perf_counter() - start) / num_steps / cfg.train_dataloader.batch_size
                    )


def evaluate(runner: Runner) -> None:
    """Evaluate the best checkpoint, draw its results, and print the next commands."""
    last = Path(runner.work_dir, 'last_checkpoint').read_text()
    checkpoint = runner.message_hub.runtime_info.get('best_ckpt') or last
    runner.load_checkpoint(checkpoint)
    scores = runner.test()
    if runner.rank:
        return
    ann_file = Path(runner.cfg.test_evaluator.ann_file)
    print(f'The checkpoint: {checkpoint}')
    if 'coco/bbox_mAP' in scores:
        draw(runner, ann_file)
        print(
            f'The results:    {describe(scores)} on {ann_file.name}; each class is above\n'
            f'The pictures:   {", ".join(PICTURES)} in {runner.work_dir}'
        )
    else:
        print(f'The results:    nothing is detected on {ann_file.name}. Train longer.')
    config = shlex.quote(str(Path(runner.work_dir, Path(runner.cfg.filename).name)))
    model = f'{config} {shlex.quote(checkpoint)}'
    print(
        f"""\
To predict:     mmevit infer {model} IMAGE_OR_FOLDER
To export:      mmevit export {model} --to onnx
To go on:       mmevit train {config} --resume --cfg-options \
train_cfg.max_epochs={2 * runner.max_epochs}"""
    )


def describe(scores: Mapping[str, float]) -> str:
    """Format the mean average precision of boxes and masks."""
    parts = [
        f'{name} AP {scores[f"coco/{key}_mAP"]:.3f} (AP50 {scores[f"coco/{key}_mAP_50"]:.3f})'
        for key, name in (('bbox', 'box'), ('segm', 'mask'))
        if f'coco/{key}_mAP' in scores
    ]
    return ', '.join(parts)


def draw(runner: Runner, ann_file: Path) -> None:
    """Draw precision, recall and confused classes of the detections that were written."""
    evaluated = evaluate_boxes(ann_file, Path(runner.work_dir, f'{DETECTIONS}.bbox.json'))
    classes = runner.cfg.test_dataloader.dataset.metainfo.classes
    figures = (
        plot_precision_recall(evaluated, classes),
        plot_confusions(count_confusions(evaluated), classes),
    )
    for name, figure in zip(PICTURES, figures, strict=True):
        with atomic_write(Path(runner.work_dir, name)) as path:
            figure.savefig(path, dpi=150)
