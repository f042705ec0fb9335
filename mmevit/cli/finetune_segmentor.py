"""Fine-tuning of segmentors, for the command finetune."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmevit.cli.convert_dataset import summarise
from mmevit.cli.finetune_recipe import finish_config, set_data, start_config
from mmevit.datasets.formats import LabelledData, write_seg_maps

# A file in the work directory.
PICTURE = 'confusions.png'


def prepare(args: Namespace, data: LabelledData) -> Config:
    """Write segmentation maps and a complete config to the work directory, and load it.

    Args:
        args: The arguments of the command.
        data: The labelled images, split.
    """
    folder = Path(args.work_dir, 'seg_maps')
    classes, lists = write_seg_maps(data, folder)
    print(summarise(data), flush=True)
    name, cfg = start_config(
        args, 'finetune_segmentation.py', 'semantic-fpn_evit_', 'mmseg', num_classes=len(classes)
    )
    prefix = dict(img_path='', seg_map_path=str(folder.resolve()))
    set_data(cfg, data.root, lists, prefix, classes)
    cfg.test_evaluator[1].out_file = str(Path(args.work_dir, PICTURE).resolve())
    return finish_config(cfg, name, args, data)


def report(runner: Runner, scores: Mapping[str, float]) -> None:
    """Print the results of an evaluation."""
    images = Path(runner.cfg.test_dataloader.dataset.ann_file).name
    print(
        f"""\
The results:    mIoU {scores['mIoU']:.2f}, pixel accuracy {scores['aAcc']:.2f} on {images}; each \
class is above
The picture:    {PICTURE} in {runner.work_dir}"""
    )
