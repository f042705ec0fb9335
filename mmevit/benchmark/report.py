"""Tables and pictures of what was measured."""

import csv
import dataclasses
import itertools
import json
import platform
import re
from pathlib import Path

import numpy as np
import torch

from mmevit.utils.errors import ConfigError
from mmevit.utils.files import PICTURES, atomic_write, check_ending
from mmevit.utils.pytorch import cpu_capability
from mmevit.utils.tables import join_cells

from .measuring import best_forms


def write_table(rows, setting, path):
    """Write rows to a file.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them.
        setting (Setting): How they were measured.
        path (str | Path): A file that ends in .md, .csv or .json. JSON holds every round and the
            setting too.

    Raises:
        UserError: If it ends otherwise, or cannot be written.
    """
    check_ending(path, WRITERS)
    with atomic_write(path) as unfinished, unfinished.open('w', newline='') as file:
        WRITERS[Path(path).suffix](rows, setting, file)


def write_markdown(rows, setting, file):
    """Write rows as a Markdown table under a line that says how they were measured."""
    print(f'{describe(setting)}\n\n{format_table(rows)}', file=file)


def write_csv(rows, setting, file):
    """Write the numbers of the table, unrounded."""
    names = ['model', 'form', *COLUMNS, 'ratio_low', 'ratio_high', 'problem']
    writer = csv.DictWriter(file, dict.fromkeys(names), extrasaction='ignore')
    writer.writeheader()
    writer.writerows(rows)


def write_json(rows, setting, file):
    """Write all that was measured."""
    content = dict(setting=dataclasses.asdict(setting), machine=describe(setting), rows=rows)
    json.dump(content, file, indent=1)


WRITERS = {'.md': write_markdown, '.csv': write_csv, '.json': write_json}


# The numbers of the table: their headings and how they are printed.
COLUMNS = dict(
    speed=('images/s', '{:.1f}'),
    ratio=('ratio (quartiles)', '{:.2f}'),
    latency=('median ms', '{:.1f}'),
    latency95=('95 % ms', '{:.1f}'),
    peak=('of matmul peak', '{:.0%}'),
    memory=('memory MiB', '{:.0f}'),
    params=('params M', '{:.2f}'),
    macs=('MACs M', '{:.1f}'),
    difference=('difference', '{:.0e}'),
    top1=('published top-1', '{:.1f}'),
    published_params=('published params M', '{:.1f}'),
    published_macs=('published MACs M', '{:.0f}'),
    cpu_speed=('paper images/s', '{:.1f}'),
)


def format_table(rows):
    """Format rows as a Markdown table.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them.

    Returns:
        str: The table, with the columns that have any number.

    Example:
        >>> print(format_table([dict(model='a', form='eager', speed=12.34, ratio=1,
        ...                          ratio_low=0.9, ratio_high=1.1),
        ...                     dict(model='a', form='aoti', problem='No compiler.')]))
        | model | form | images/s | ratio (quartiles) |
        |---|---|---:|---:|
        | a | eager | 12.3 | 1.00 (0.90 to 1.10) |
        | a | aoti | No compiler. |  |
    """
    names = [name for name in COLUMNS if any(is_known(row, name) for row in rows)] or ['speed']
    headings = ['model', 'form', *(COLUMNS[name][0] for name in names)]
    are_words = [True, True, *(False for _ in names)]
    return join_cells(headings, [format_row(row, names) for row in rows], are_words)


def is_known(row, name):
    """Tell whether a row has a number, but not those of networks that were not run."""
    return row.get(name) is not None and 'problem' not in row


def format_row(row, names):
    """Format one row as cells."""
    if 'problem' in row:
        return [row['model'], row['form'], *[row['problem'], *[''] * len(names)][: len(names)]]
    cells = [COLUMNS[name][1].format(row[name]) if is_known(row, name) else '' for name in names]
    if 'ratio' in names:
        cells[names.index('ratio')] += ' ({ratio_low:.2f} to {ratio_high:.2f})'.format(**row)
    return [row['model'], row['form'], *cells]


def describe(setting):
    """Say in one line what was measured on and how.

    Args:
        setting (Setting): How.

    Returns:
        str: The line.
    """
    size = ' x '.join(map(str, setting.size)) if setting.size else 'their published size'
    return (
        f'{processor(setting.device)}, PyTorch {torch.__version__}: batch {setting.batch_size}, '
        f'{setting.threads} thread{"s" * (setting.threads > 1)}, images of {size}, '
        f'{setting.rounds} round{"s" * (setting.rounds > 1)}'
        f'{"" if setting.keep_memory else ", allocator as it is"}.'
    )


def processor(device):
    """Name the processor."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    try:
        name = re.search('model name\\s*: (.*)', Path('/proc/cpuinfo').read_text())[1]
    except (OSError, TypeError):
        name = platform.processor() or platform.machine()
    return f'{name} ({cpu_capability()})'


def write_plot(rows, setting, path):
    """Write a picture of speed against published accuracy, like Figure 1 of the paper.

    Args:
        rows (list[dict]): As :func:`benchmark` gives them. Of each network the fastest form is
            shown, if its accuracy is known.
        setting (Setting): How they were measured.
        path (str | Path): A .png, .svg or .pdf file.

    Raises:
        UserError: If no accuracy is known, it ends otherwise, or cannot be written.
    """
    check_ending(path, PICTURES)
    rows = [row for row in best_forms(rows) if is_known(row, 'top1')]
    if not rows:
        raise ConfigError('No published accuracy is known of what was run: nothing can be drawn.')
    figure = plot(rows, setting)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def plot(rows, setting):
    """Draw speed against accuracy.

    Args:
        rows (list[dict]): One for each network, all with ``top1``.
        setting (Setting): How they were measured.

    Returns:
        matplotlib.figure.Figure: A line through ours, and a named point for each other.
    """
    # Not at the top: the smallest build of mmengine comes without matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(9, 6), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale('log')
    is_ours = [re.match('EfficientViT-M', row['model'], re.IGNORECASE) for row in rows]
    ours = sorted(itertools.compress(rows, is_ours), key=lambda row: row['top1'])
    others = [row for row in rows if row not in ours]
    axes.plot(*points(others), 'o', color='tab:gray', markersize=6)
    axes.plot(*points(ours), 'o-', color='tab:red', markersize=7, label='EfficientViT', zorder=3)
    axes.set_xlabel('images/s, measured')
    axes.set_ylabel('ImageNet-1k top-1 (%), published')
    axes.set_title(describe(setting), fontsize=8, parse_math=False)
    axes.grid(alpha=0.25, which='both')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter('')
    axes.margins(0.12, 0.08)
    place_names(figure, axes, rows, [('tab:red' if own else '0.25') for own in is_ours])
    return figure


def points(rows):
    """List the coordinates of some networks."""
    return [row['speed'] for row in rows], [row['top1'] for row in rows]


def place_names(figure, axes, rows, colors):
    """Write a name beside each point, where there is nothing yet.

    Args:
        figure (matplotlib.figure.Figure): The picture.
        axes (matplotlib.axes.Axes): Its axes, with all points.
        rows (list[dict]): What the points are.
        colors (list[str]): Colour of each name.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    pixels = axes.transData.transform(np.transpose(points(rows)))
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    for line in axes.lines[1:]:  # the line through ours is kept free as well
        ends = axes.transData.transform(line.get_xydata())
        steps = np.linspace(0, 1, 30)[:, None]
        for start, end in itertools.pairwise(ends):
            taken += [Bbox.from_bounds(x, y, 1, 1) for x, y in start + (end - start) * steps]
    for row, color in zip(rows, colors, strict=True):
        place_name(axes, row, color, taken)


def place_name(axes, row, color, taken):
    """Write one name, at the nearest free place, or beside the point if there is none."""
    for distance, (x, y) in itertools.product((7, 13, 20, 28), PLACES):
        name = axes.annotate(
            row['model'],
            (row['speed'], row['top1']),
            xytext=(distance * x, distance * y),
            textcoords='offset points',
            ha={1: 'left', 0: 'center', -1: 'right'}[np.sign(x)],
            va={1: 'bottom', 0: 'center', -1: 'top'}[np.sign(y)],
            fontsize=8,
            color=color,
            parse_math=False,
            arrowprops=dict(arrowstyle='-', color='0.7', lw=0.6) if distance > 7 else None,
        )
        box = name.get_window_extent()
        if box.count_overlaps(taken) == 0 and axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1:
            break
        name.set_visible(False)
    name.set_visible(True)
    taken.append(box)


# Directions from a point to its name, the best first.
PLACES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]
