"""Fine-tuning of segmentors, for the command finetune."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmevit.cli.convert_dataset import summarise
from mmevit.cli.finetune_recipe import (
    finish_config,
    print_commands,
    start_config,
    test_best,
)
from mmevit.datasets.formats import LabelledData, write_seg_maps
from mmevit.datasets.formats.files import SPLITS

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
    set_data(cfg, data.root, folder, classes, lists)
    cfg.test_evaluator[1].out_file = str(Path(args.work_dir, PICTURE).resolve())
    return finish_config(cfg, name, args, data)


def set_data(
    cfg: Config, root: Path, maps: Path, classes: Sequence[str], lists: Mapping[str, Path]
) -> None:
    """Set the data; without a split for testing, that for validation."""
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=f'{root.resolve()}/',
            ann_file=str(lists.get(split, lists['val']).resolve()),
            data_prefix=dict(img_path='', seg_map_path=str(maps.resolve())),
            metainfo=dict(classes=classes),
        )


def evaluate(runner: Runner) -> None:
    """Evaluate the best checkpoint, draw its results, and print the next commands."""
    checkpoint, scores = test_best(runner)
    if runner.rank:
        return
    images = Path(runner.cfg.test_dataloader.dataset.ann_file).name
    print(
        f"""\
The checkpoint: {checkpoint}
The results:    mIoU {scores['mIoU']:.2f}, pixel accuracy {scores['aAcc']:.2f} on {images}; each \
class is above
The picture:    {PICTURE} in {runner.work_dir}"""
    )
    print_commands(runner, checkpoint)
