"""Tables and plots of benchmark results."""

import dataclasses
import itertools
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import PICTURES, atomic_write, check_ending
from mmevit.utils.pytorch import cpu_capability
from mmevit.utils.tables import Rows, format_table, write_formats
from mmevit.utils.versions import installed_distribution

from .forms import Setting
from .measuring import best_forms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

# Measured and published numbers: their headings and formats.
COLUMNS = dict(
    speed=('images/s', '{:.1f}'),
    ratio=('ratio (quartiles)', '{:.2f} ({ratio_low:.2f} to {ratio_high:.2f})'),
    latency=('median ms', '{:.1f}'),
    latency95=('95 % ms', '{:.1f}'),
    peak=('of matmul peak', '{:.0%}'),
    memory=('memory MiB', '{:.0f}'),
    params=('params M', '{:.2f}'),
    macs=('MACs M', '{:.1f}'),
    difference=('difference', '{:.0e}'),
    top1=('published top-1', '{:.1f}'),
    box_ap=('published box AP', '{:.1f}'),
    published_params=('published params M', '{:.1f}'),
    published_macs=('published MACs M', '{:.0f}'),
    cpu_speed=('paper images/s', '{:.1f}'),
)
CSV_COLUMNS = ('model', 'form', *COLUMNS, 'ratio_low', 'ratio_high', 'problem')
# What a time depends on.
PACKAGES = (
    'torch',
    'timm',
    'onnxruntime',
    'openvino',
    'ai-edge-litert',
    'executorch',
    'ncnn',
)


def format_results(rows: Rows) -> str:
    """Format the rows of :func:`benchmark` as a Markdown table, without empty columns.

    Example:
        >>> print(format_results([dict(model='a', form='eager', speed=12.34, ratio=1,
        ...                            ratio_low=0.9, ratio_high=1.1),
        ...                       dict(model='a', form='aoti', problem='No compiler.')]))
        | model | form | images/s | ratio (quartiles) |
        |---|---|---:|---:|
        | a | eager | 12.3 | 1.00 (0.90 to 1.10) |
        | a | aoti | No compiler. |  |
    """
    measured = [row for row in rows if 'problem' not in row]
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in measured)]
    names = names or ['speed']
    shown = [
        dict(model=row['model'], form=row['form']) | {names[0]: row['problem']}
        if 'problem' in row
        else row
        for row in rows
    ]
    columns = dict(model=('model', '{}'), form=('form', '{}'))
    return format_table(shown, columns | {name: COLUMNS[name] for name in names})


def write_results(rows: Rows, setting: Setting, path: str | Path) -> None:
    """Write the rows of :func:`benchmark` to a .md, .csv or .json file.

    CSV also holds the date, the processor, the versions and the command of the process, JSON the
    setting and the speed in every round.

    Raises:
        UserError: If the suffix is another one, or the file cannot be written.
    """
    machine, run = describe(setting), describe_run(setting)
    write_formats(
        path,
        f'{machine}\n\n{format_results(rows)}\n',
        [{name: row.get(name) for name in CSV_COLUMNS} | run for row in rows],
        dict(setting=dataclasses.asdict(setting), machine=machine, rows=rows),
    )


def describe(setting: Setting) -> str:
    """Describe the machine and the setting in one line."""
    size = ' x '.join(map(str, setting.size)) if setting.size else 'their published size'
    return (
        f'{processor_name(setting.device)}, PyTorch {torch.__version__}: '
        f'batch {setting.batch_size}, '
        f'{setting.threads} thread{"s" * (setting.threads > 1)}, images of {size}, '
        f'{setting.rounds} round{"s" * (setting.rounds > 1)}'
        f'{"" if setting.keep_memory else ", default allocator"}.'
    )


def describe_run(setting: Setting) -> dict[str, Any]:
    """Return when, where, with which versions and how the rows of a file were measured."""
    packages = (installed_distribution([name]) for name in PACKAGES)
    return dict(
        threads=setting.threads,
        batch_size=setting.batch_size,
        date=date.today().isoformat(),
        processor=processor_name(setting.device),
        versions=', '.join(f'{name} {found}' for name, found in packages if found),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def processor_name(device: str) -> str:
    """Return the name of the GPU, or the name and the instruction set of the CPU."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists() and (found := re.search('model name\\s*: (.*)', cpuinfo.read_text())):
        name = found[1]
    return f'{name} ({cpu_capability()})'


def write_plot(rows: Rows, title: str, path: str | Path) -> None:
    """Plot speed against published accuracy, like Figure 1 of the paper.

    Args:
        rows: From :func:`benchmark`. The fastest form of each network is shown, if its accuracy, or
            the average precision of a detector, is known for this size.
        title: How they were measured.
        path: A .png, .svg or .pdf file.

    Raises:
        UserError: If no accuracy is known, the suffix is another one, or the file cannot be
            written.
    """
    check_ending(path, PICTURES)
    rows = [row for row in best_forms(rows) if 'speed' in row and accuracy(row) is not None]
    if not rows:
        raise ConfigError(
            'No published accuracy of these models is known. Plot models of the paper.'
        )
    kinds = {row.get('box_ap') is not None for row in rows}
    if len(kinds) > 1:
        raise ConfigError('Classifiers and detectors have different metrics. Plot one kind only.')
    (is_detection,) = kinds
    # mmengine-lite is installed without matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(9, 6), layout='constrained')
    axes = figure.subplots()
    axes.set_xscale('log')
    ours = sorted(filter(is_efficientvit, rows), key=accuracy)
    others = [row for row in rows if not is_efficientvit(row)]
    axes.plot(*coordinates(others), 'o', color='tab:gray', markersize=6)
    axes.plot(*coordinates(ours), 'o-', color='tab:red', markersize=7, zorder=3)
    axes.set(
        xlabel='images/s, measured',
        ylabel=f'{"COCO box AP" if is_detection else "ImageNet-1k top-1"} (%), published',
    )
    axes.set_title(title, fontsize=8, parse_math=False)
    axes.grid(alpha=0.25, which='both')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter('')
    axes.margins(0.12, 0.08)
    figure.draw_without_rendering()
    label_points(axes, rows)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def is_efficientvit(row: Row) -> bool:
    """Whether a row is about EfficientViT."""
    return 'efficientvit-m' in row['model'].lower()


def accuracy(row: Row) -> Any:
    """Return the published accuracy of a classifier or average precision of a detector, or None."""
    return row.get('box_ap') if row.get('top1') is None else row['top1']


def coordinates(rows: Rows) -> tuple[list[float], list[Any]]:
    """Return the speeds and the accuracies of networks."""
    return [row['speed'] for row in rows], [accuracy(row) for row in rows]


def label_points(axes: 'Axes', rows: Rows) -> None:
    """Write each name at the nearest position where there is space, or at the farthest one."""
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform(np.transpose(coordinates(rows)))
    occupied = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    line = axes.transData.transform(axes.lines[1].get_xydata())  # of EfficientViT
    for start, end in itertools.pairwise(line):
        occupied += [Bbox.from_bounds(x, y, 1, 1) for x, y in np.linspace(start, end, 30)]
    for row in rows:
        for distance, (x, y) in itertools.product((7, 13, 20, 28), DIRECTIONS):
            label = axes.annotate(
                row['model'],
                (row['speed'], accuracy(row)),
                xytext=(distance * x, distance * y),
                textcoords='offset points',
                ha={1: 'left', 0: 'center', -1: 'right'}[np.sign(x)],
                va={1: 'bottom', 0: 'center', -1: 'top'}[np.sign(y)],
                fontsize=8,
                color='tab:red' if is_efficientvit(row) else '0.25',
                parse_math=False,
                arrowprops=dict(arrowstyle='-', color='0.7', lw=0.6) if distance > 7 else None,
            )
            box = label.get_window_extent()
            is_inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if is_inside and not box.count_overlaps(occupied):
                break
            label.set_visible(False)
        label.set_visible(True)
        occupied.append(box)


# Directions from a point to its label, the preferred ones first.
DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]
