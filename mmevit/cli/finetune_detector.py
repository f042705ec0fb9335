"""Fine-tuning of detectors, for the command finetune."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmevit.analysis import (
    count_confusions,
    evaluate_boxes,
    plot_confusions,
    plot_precision_recall,
)
from mmevit.cli.convert_dataset import summarise
from mmevit.cli.finetune_recipe import (
    finish_config,
    pipelines,
    set_data,
    start_config,
)
from mmevit.datasets.formats import LabelledData, write_coco
from mmevit.utils.configs import type_name
from mmevit.utils.files import atomic_write

# Files in the work directory.
DETECTIONS = 'detections'
PICTURES = ('precision_recall.png', 'confusions.png')


def prepare(args: Namespace, data: LabelledData, with_masks: bool) -> Config:
    """Write annotation files and a complete config to the work directory, and load it.

    Args:
        args: The arguments of the command.
        data: The labelled images, split.
        with_masks: Whether to train instance segmentation.
    """
    paths = write_coco(data, Path(args.work_dir, 'annotations'))
    print(summarise(data), flush=True)
    family = 'rtmdet-ins_evit_' if with_masks else 'rtmdet_evit_'
    name, cfg = start_config(
        args, 'finetune_detection.py', family, 'mmdet', num_classes=len(data.classes)
    )
    set_data(cfg, data.root, paths, dict(img=''), data.classes)
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = cfg[f'{split}_dataloader'].dataset.ann_file
    if with_masks:
        add_masks(cfg)
    cfg.test_evaluator.outfile_prefix = str(Path(args.work_dir, DETECTIONS))
    return finish_config(cfg, name, args, data)


def add_masks(cfg: Config) -> None:
    """Load masks, and evaluate them too."""
    for steps in pipelines(cfg):
        for step in steps:
            if type_name(step) == 'LoadAnnotations':
                step.with_mask = True
            elif type_name(step) == 'FilterAnnotations':
                step.by_mask = True
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].metric = ['bbox', 'segm']
    cfg.default_hooks.checkpoint.save_best = 'coco/segm_mAP'


def report(runner: Runner, scores: Mapping[str, float]) -> None:
    """Draw and print the results of an evaluation."""
    ann_file = Path(runner.cfg.test_evaluator.ann_file)
    if 'coco/bbox_mAP' in scores:
        draw(runner, ann_file)
        print(
            f'The results:    {describe(scores)} on {ann_file.name}; each class is above\n'
            f'The pictures:   {", ".join(PICTURES)} in {runner.work_dir}'
        )
    else:
        print(f'The results:    nothing is detected on {ann_file.name}. Train longer.')


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
