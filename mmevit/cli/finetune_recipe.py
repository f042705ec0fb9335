"""What the fine-tuning of detectors and segmentors shares: model, data, size, schedule."""

import math
import os
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.runner import CheckpointLoader, Runner

from mmevit.checkpoint.loader import load_from_evit, locate
from mmevit.cli.arguments import load_config, use_mixed_precision
from mmevit.datasets.formats import LabelledData
from mmevit.datasets.formats.files import SPLITS
from mmevit.datasets.loading import load_readable_images
from mmevit.engine.optim_wrappers import train_in_bfloat16
from mmevit.models import EfficientViT
from mmevit.models.efficientvit import infer_arch, infer_window_sizes, select_weights
from mmevit.utils.configs import MIM_FOLDER, build_model, default_scope, read_config, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

CONFIGS = MIM_FOLDER / 'configs/efficientvit'
# Longest sides of images, of which --minutes chooses the largest that leaves enough epochs: this
# share of the usual number, since the next smaller side leaves about 1.5 times as many.
SIDES, ENOUGH = (640, 512, 416, 320), 0.8
# Images to see in training, and the fewest and most epochs.
NUM_SEEN, MIN_EPOCHS, MAX_EPOCHS = 12_000, 12, 200
# Share of --minutes that is planned for: the machine may become slower.
PLANNED = 0.85
NUM_EVALUATIONS = 10
# The variable of each launcher with the number of processes.
WORLD_SIZES = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
# Variables of the base config. Settings hold copies of them, which change here.
VARIABLES = ('backend_args', 'data_root', 'dataset_type', 'test_pipeline', 'train_pipeline')


def start_config(
    args: Namespace, recipe: str, family: str, scope: str, num_classes: int
) -> tuple[str, Config]:
    """Return the name of the model, and the recipe with it.

    Args:
        args: The arguments of the command.
        recipe: A config in ``_base_``, without a model.
        family: The beginning of the names of the configs from which the model is chosen by default.
        scope: The library of other models that are accepted.
        num_classes: Number of classes.
    """
    name, model = choose_model(args, family, scope)
    cfg = read_config(CONFIGS / '_base_' / recipe, None)
    for variable in VARIABLES:
        cfg.pop(variable, None)
    cfg.model = model
    set_weights(cfg.model, args.weights)
    set_classes(cfg.model, num_classes)
    return name, cfg


def set_data(
    cfg: Config,
    root: Path,
    lists: Mapping[str, Path],
    prefix: Mapping[str, str],
    classes: Sequence[str],
) -> None:
    """Set the data; without a split for testing, that for validation.

    Args:
        cfg: The config.
        root: Folder of the images.
        lists: The annotation file of each split.
        prefix: What mmengine calls ``data_prefix``.
        classes: Names of the classes.
    """
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=f'{root.resolve()}/',
            ann_file=str(lists.get(split, lists['val']).resolve()),
            data_prefix=prefix,
            metainfo=dict(classes=classes),
        )


def finish_config(cfg: Config, name: str, args: Namespace, data: LabelledData) -> Config:
    """Set batches, flips, precision, sizes and schedule, write the complete config, load it."""
    set_batch_size(cfg.train_dataloader, args, len(data.splits['train']))
    cfg.auto_scale_lr.enable = True
    if args.no_flip:
        remove_flips(cfg)
    if args.amp:
        use_mixed_precision(cfg)
        cfg.custom_hooks.append(dict(type='ChannelsLastHook'))
    set_schedule(cfg, args, data)
    path = Path(args.work_dir, f'{name}_finetune.py')
    with atomic_write(path) as unfinished:
        cfg.dump(unfinished)
    args.config = path
    return load_config(args, SPLITS, needs=())


def choose_model(args: Namespace, family: str, scope: str) -> tuple[str, Any]:
    """Return the name and the model of the config that is asked for, or of one for the weights."""
    if args.model is None:
        return choose_from_family(args.weights, family)
    path = CONFIGS / f'{args.model}.py'
    cfg = read_config(path if path.is_file() else args.model, None, needs=['model'])
    if cfg.default_scope != scope:
        raise ConfigError(
            f'{args.model} is a config of {cfg.default_scope}. This task needs one of {scope}.'
        )
    return Path(args.model.rpartition('::')[2]).stem, cfg.model


def choose_from_family(weights: str | None, family: str) -> tuple[str, Any]:
    """Return the config for the arch of the weights, or that for M4 adapted to it."""
    if weights in (None, 'none'):
        arch = 'm1' if get_device() == 'cpu' else 'm4'
    else:
        arch, _ = infer_backbone(locate(weights))
    path = CONFIGS / f'{family}{arch}.py'
    model = read_config(path if path.is_file() else CONFIGS / f'{family}m4.py', None).model
    widths = EfficientViT.arch_zoo[arch].embed_dims
    model.backbone.arch = arch
    model.backbone.init_cfg.checkpoint = f'evit://{arch}'
    model.neck.in_channels = [widths[0] // 2, *widths][-len(model.neck.in_channels) :]
    return path.stem, model


def infer_backbone(weights: str) -> tuple[str, list[int]]:
    """Infer arch and window sizes; raise ConfigError if a file has no weights to train."""
    backbone = select_weights(load_from_evit(weights, 'cpu')['state_dict'], 'backbone.')
    arch, windows = infer_arch(backbone), infer_window_sizes(backbone)
    if arch is None or windows is None:
        raise ConfigError(
            f'{weights} has no trainable weights of {", ".join(EfficientViT.arch_zoo)}. Pass a '
            'classifier or detector with one of them as its backbone, not folded.'
        )
    return arch, windows


def set_weights(model: Any, weights: str | None) -> None:
    """Set the weights of the backbone: those of the model, of a checkpoint, or random ones."""
    if weights is None:
        return
    if 'pretrained' in model:
        model.pretrained = None  # mmsegmentation's way to name weights
    backbone = model.backbone
    backbone.init_cfg = None
    if weights == 'none':
        # Random layers are trained, and so are their statistics.
        kept = dict(norm_eval=False, frozen_stages=-1)
        backbone.update({key: value for key, value in kept.items() if key in backbone})
    else:
        backbone.init_cfg = dict(type='Pretrained', checkpoint=locate(weights), prefix='backbone.')


def load_weights(backbone: Any) -> None:
    """Load the weights of a backbone, so that a failure comes before its speed is measured."""
    init_cfg = backbone.get('init_cfg') or {}
    if 'checkpoint' in init_cfg:
        CheckpointLoader.load_checkpoint(init_cfg['checkpoint'], 'cpu')


def set_classes(settings: Any, num_classes: int) -> None:
    """Set the number of classes of all heads of a model."""
    for value in settings.values() if isinstance(settings, dict) else settings:
        if isinstance(value, (dict, list, tuple)):
            set_classes(value, num_classes)
    if isinstance(settings, dict) and 'num_classes' in settings:
        settings['num_classes'] = num_classes


def set_batch_size(
    dataloader: ConfigDict, args: Namespace, num_images: int, minimum: int = 1
) -> None:
    """Limit the batch size to the number of images, since incomplete batches may be dropped.

    Raises:
        ConfigError: If it would be below ``minimum``.
    """
    requested: Any = args.batch_size or dataloader.batch_size
    batch_size = min(requested, num_images // count_processes(args))
    if batch_size < minimum:
        raise ConfigError(
            f'{num_images} training images make batches of {batch_size} for each of '
            f'{count_processes(args)} processes, but {minimum} or more are needed. Use more '
            'images, fewer processes, or a larger --batch-size.'
        )
    dataloader.batch_size = batch_size


def count_processes(args: Namespace) -> int:
    """Return the number of processes of a run; mmengine sets up the process group later."""
    return int(os.environ.get(WORLD_SIZES.get(args.launcher, ''), 1))


def pipelines(cfg: Config) -> Iterator[list[Any]]:
    """Yield the pipelines of the data, and each part of that of test-time augmentation."""
    for split in SPLITS:
        yield cfg[f'{split}_dataloader'].dataset.pipeline
    yield from cfg.tta_pipeline[-1].transforms


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
                # mmdet's takes width and height, mmsegmentation's height and width.
                step.crop_size = size if cfg.default_scope == 'mmseg' else width_first
            elif type_name(step) == 'Pad':
                step.size = width_first
    # mmsegmentation pads the images of a batch.
    if 'size' in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = size


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
    if args.minutes is not None:
        load_weights(cfg.model.backbone)
    for size in sizes:
        set_size(cfg, size)
        if args.minutes is None:
            break
        seconds, evaluation = time_images(cfg)
        # The best checkpoint is evaluated at the end.
        left = 60 * PLANNED * args.minutes - evaluation * (NUM_EVALUATIONS + 1) * num_val
        possible = left / (seconds * num_train)
        print_log(
            f'{size[0]} x {size[1]} pixels: {1000 * seconds:.0f} ms for a training image, '
            f'{max(possible, 0):.1f} epochs in {args.minutes} min.',
            'current',
        )
        if possible >= (args.epochs or ENOUGH * epochs) or size == sizes[-1]:
            epochs = args.epochs or max(int(possible), 1)
            break
    steps = math.ceil(num_train / cfg.train_dataloader.batch_size / count_processes(args))
    cfg.train_cfg.update(max_epochs=epochs, val_interval=math.ceil(epochs / NUM_EVALUATIONS))
    warm_up = cfg.param_scheduler[0]
    warm_up.end = min(warm_up.end, math.ceil(steps * epochs / 5))


def time_images(cfg: Config) -> tuple[float, float]:
    """Return the seconds that training and evaluation of an image take on this machine."""
    cfg = Config(cfg.to_dict())
    cfg.model.backbone.init_cfg = None
    cfg.optim_wrapper.pop('paramwise_cfg', None)  # logs a line for each parameter
    load_readable_images(cfg.train_dataloader.dataset, on_error='skip')
    load_readable_images(cfg.val_dataloader.dataset, on_error='blank')
    if get_device() == 'cpu':
        train_in_bfloat16(cfg)
    with default_scope(cfg):
        model: Any = build_model(cfg).to(get_device()).train()
        if 'ChannelsLastHook' in map(type_name, cfg.custom_hooks):
            model.to(memory_format=torch.channels_last)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        training = time_steps(cfg.train_dataloader, lambda data: model.train_step(data, optimizer))
        with torch.no_grad():
            return training, time_steps(cfg.val_dataloader, model.eval().val_step)


def time_steps(dataloader: ConfigDict, step: Callable[[Any], Any]) -> float:
    """Return the seconds that a step takes for an image, on average after some steps."""
    num_warm_up, num_steps = 2, 4
    loader = Runner.build_dataloader(dict(dataloader, persistent_workers=False))
    batches = chain.from_iterable(repeat(loader))
    for data in islice(batches, num_warm_up):
        step(data)
    start = time.perf_counter()
    for data in islice(batches, num_steps):
        step(data)
    batch_size: Any = dataloader.batch_size
    return (time.perf_counter() - start) / (num_steps * batch_size)


def find_best(runner: Runner) -> str:
    """Return the path of the best checkpoint, or of the last one."""
    last = Path(runner.work_dir, 'last_checkpoint').read_text()
    return runner.message_hub.runtime_info.get('best_ckpt') or last


def test_best(runner: Runner) -> tuple[str, dict[str, float]]:
    """Evaluate the best checkpoint; return its path and its scores."""
    checkpoint = find_best(runner)
    runner.load_checkpoint(checkpoint)
    return checkpoint, runner.test()


def print_commands(runner: Runner, checkpoint: str) -> None:
    """Print the next commands."""
    config = shlex.quote(str(Path(runner.work_dir, Path(runner.cfg.filename).name)))
    model = f'{config} {shlex.quote(checkpoint)}'
    print(
        f"""\
To predict:     mmevit infer {model} IMAGE_OR_FOLDER
To export:      mmevit export {model} --to onnx
To resume:      mmevit train {config} --resume --cfg-options \
train_cfg.max_epochs={2 * runner.max_epochs}"""
    )
