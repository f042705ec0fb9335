"""Compare M4 with ablations of its design choices (Table 6 and Figure 7)."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmevit.analysis.plots import plot_speeds
from mmevit.benchmark import benchmark, find_model
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, argument, command, flag, write_outputs
from mmevit.cli.benchmark_arguments import benchmark_arguments, make_setting
from mmevit.utils.configs import MIM_FOLDER, read_config
from mmevit.utils.errors import ConfigError
from mmevit.utils.tables import format_table

CONFIGS = MIM_FOLDER / 'configs/efficientvit'
# Images per second on a V100, as published.
PAPER_SPEEDS = dict(evit_m4_in1k=15914)
COLUMNS = dict(
    change=('network', '{}'),
    params=('params M', '{:.2f}'),
    macs=('MACs M', '{:.1f}'),
    speed=('images/s', '{:.1f}'),
    ratio=('ratio', '{:.2f}'),
    paper_speed=('paper, GPU images/s', '{:.0f}'),
    digits=('digits top-1', '{:.2f}'),
)


@command(
    benchmark_arguments(),
    argument('--form', 'see tools/benchmark.py', default='folded'),
    flag('--train-digits', 'train each network on the digits, which takes minutes'),
    argument('--work-dir', 'folder for the training runs', default='work_dirs/ablation'),
    argument('--cfg-options', 'override settings of the training', nargs='+', default=[]),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Measure speed and accuracy, and print, write and plot the table."""
    paths = args.models or [CONFIGS / 'evit_m4_in1k.py', *sorted(CONFIGS.glob('ablation/*.py'))]
    setting = make_setting(args, keep_memory=True)
    rows: list[dict[str, Any]] = benchmark(
        [find_model(str(path)) for path in paths], [args.form], setting
    )
    for path, row in zip(paths, rows, strict=True):
        if 'problem' in row:
            raise ConfigError(f'Cannot run {path} as {args.form}: {row["problem"]}')
        row['change'] = describe_change(path)
        row['paper_speed'] = PAPER_SPEEDS.get(Path(path).stem)
        if args.train_digits:
            row['digits'] = train_on_digits(path, args)
    print(f'{describe(setting)}\n\n{format_table(rows, COLUMNS)}')
    write_outputs(args, rows, COLUMNS, describe(setting), lambda: plot_speeds(rows))


def describe_change(path: str | Path) -> str:
    """Read what a config changes from its first line."""
    if not Path(path).is_file():
        return str(path)
    return Path(path).read_text().splitlines()[0].lstrip('# ').rstrip('.').split(';')[0]


def train_on_digits(path: str | Path, args: Namespace) -> float:
    """Train the classifier of a config on the digits; return the best top-1 accuracy in percent."""
    model = read_config(path, None, needs=['model']).model
    cfg = Config.fromfile(CONFIGS / 'evit_m0_digits.py')
    cfg.model.backbone, cfg.model.head.in_channels = model.backbone, model.head.in_channels
    work_dir = Path(args.work_dir, Path(path).stem)
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg.dump(work_dir / 'digits.py')
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    train = [sys.executable, MIM_FOLDER / 'tools/train.py', work_dir / 'digits.py']
    if subprocess.run([*train, '--work-dir', work_dir, *options]).returncode:
        raise ConfigError(f'Cannot train {path} (see the messages above).')
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    return max(json.loads(line).get('accuracy/top1', 0) for line in log.read_text().splitlines())
