"""Time tools/train.py and mmdet's own tools/train.py from the command to the first iteration.

The data are synthetic: random boxes in COCO's layout and empty image files. The two commands
alternate; each ends when its train loop is about to request the first batch.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import mmdet
import msgspec
from rich.progress import track

from mmevit.utils.tables import format_table

ROOT = Path(__file__).parents[2]
COMMANDS = {
    'mmevit': ROOT / 'tools/train.py',
    'mmdet': Path(mmdet.__file__).parent / '.mim/tools/train.py',
}
NUM_CLASSES = 80
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['mmevit', 'end_at_first_iteration'], allow_failed_imports=False)
model = dict(backbone=dict(init_cfg=None))
metainfo = dict(classes=tuple(f'class {{number}}' for number in range(80)))
train_dataloader = dict(
    dataset=dict(data_root={root!r}, metainfo=metainfo, ann_file='train.json',
                 data_prefix=dict(img='train/'))
)
val_dataloader = dict(
    dataset=dict(data_root={root!r}, metainfo=metainfo, ann_file='val.json',
                 data_prefix=dict(img='val/'))
)
val_evaluator = dict(ann_file={root!r} + '/val.json')
test_dataloader, test_evaluator = val_dataloader, val_evaluator
custom_hooks = [dict(type='EndAtFirstIteration')]
"""
HOOK = """
import json, os, re
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class EndAtFirstIteration(Hook):
    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        times = os.times()
        # Unlike ru_maxrss, not that of the process that started this one.
        kilobytes = int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
        usage = dict(user=times.user, system=times.system, memory=kilobytes * 1024 / 1e9)
        Path('usage.json').write_text(json.dumps(usage))
        os._exit(0)
"""
COLUMNS = dict(
    command=('command', '{}'),
    wall=('wall (s)', '{:.1f}'),
    user=('user CPU (s)', '{:.1f}'),
    system=('system CPU (s)', '{:.1f}'),
    memory=('peak memory (GB)', '{:.2f}'),
)


def main() -> None:
    """Generate the data, run the commands, and print the minima, which vary least."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', type=Path, help='folder for the data and the runs')
    parser.add_argument('--images', type=int, default=118_000, help='training images')
    parser.add_argument('--boxes', type=int, default=860_000, help='boxes in them')
    parser.add_argument('--runs', type=int, default=3, help='runs of each command')
    args = parser.parse_args()
    folder = args.folder.resolve()
    make_split(folder, 'train', args.images, args.boxes)
    make_split(folder, 'val', max(args.images // 24, 1), max(args.boxes // 24, 1))
    base = str(ROOT / 'configs/retinanet_evit_m4.py')
    (folder / 'config.py').write_text(CONFIG.format(base=base, root=str(folder)))
    (folder / 'end_at_first_iteration.py').write_text(HOOK)
    runs = {name: [] for name in COMMANDS}
    for _ in track(range(args.runs), 'Runs'):
        for name, path in COMMANDS.items():
            runs[name].append(time_command(path, folder, name))
    rows = [
        dict(command=name) | {key: min(run[key] for run in measured) for key in measured[0]}
        for name, measured in runs.items()
    ]
    print(format_table(rows, COLUMNS))


def make_split(folder: Path, split: str, num_images: int, num_boxes: int) -> None:
    """Write an annotation file with random boxes, and its empty images."""
    rng = random.Random(split)
    (folder / split).mkdir(parents=True, exist_ok=True)
    images = [
        dict(id=number, file_name=f'{number:012}.jpg', height=480, width=640, license=1)
        for number in range(1, num_images + 1)
    ]
    for image in images:
        (folder / split / image['file_name']).touch()
    annotations = []
    for number in range(1, num_boxes + 1):
        limits = ((0, 500), (0, 400), (5, 130), (5, 70))
        box = [round(rng.uniform(*limit), 2) for limit in limits]
        image, category = rng.randint(1, num_images), rng.randrange(NUM_CLASSES)
        annotation = dict(id=number, image_id=image, category_id=category, iscrowd=0)
        annotations.append(annotation | dict(bbox=box, area=round(box[2] * box[3], 4)))
    categories = [dict(id=number, name=f'class {number}') for number in range(NUM_CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / f'{split}.json').write_bytes(msgspec.json.encode(content))


def time_command(path: Path, folder: Path, name: str) -> dict:
    """Run a command to its first iteration, and return its times in s and peak memory in GB."""
    log, usage = folder / f'{name}.txt', folder / 'usage.json'
    usage.unlink(missing_ok=True)
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join((str(folder), str(ROOT))))
    command = [sys.executable, path, 'config.py', '--work-dir', f'work_dirs/{name}']
    start = time.perf_counter()
    with log.open('w') as output:
        subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output)
    wall = time.perf_counter() - start
    if not usage.exists():
        sys.exit(f'error: {path} did not reach the first iteration. See {log}.')
    return dict(wall=wall) | msgspec.json.decode(usage.read_bytes())


if __name__ == '__main__':
    main()
