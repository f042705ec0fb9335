"""Plots of the analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .runtime import COMPUTE_BOUND, MEMORY_BOUND, Row, kind_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, *shape: int, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its plots, see :meth:`matplotlib.figure.Figure.subplots`."""
    # Not at the top: mmengine-lite does not install matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    plots = figure.subplots(*shape, **options)
    for axes in figure.axes:
        axes.spines[['top', 'right']].set_visible(False)
    return figure, plots


def plot_grad_cams(images: Tensor, maps: list[Tensor], titles: list[str]) -> Figure:
    """Draw each image in a row: plain, then with the map of each stage.

    Args:
        images: RGB from 0 to 1, (N, 3, H, W).
        maps: For each stage (N, H, W), from 0 to 1.
        titles: One for each image.
    """
    shape = len(images), 1 + len(maps)
    figure, rows = new_figure(2.2 * shape[1], 2.4 * shape[0], *shape, squeeze=False)
    for index, row in enumerate(rows):
        for stage, axes in enumerate(row):
            axes.imshow(images[index].permute(1, 2, 0).clamp(0, 1).cpu())
            axes.set_axis_off()
            if stage > 0:
                axes.imshow(maps[stage - 1][index].cpu(), cmap='jet', alpha=0.5, vmin=0, vmax=1)
                axes.set_title(f'stage {stage}', fontsize=9)
        row[0].set_title(titles[index], fontsize=9, parse_math=False)
    return figure


def plot_similarity(similarities: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Plot head similarity block by block, as in Figure 4 of the paper.

    A line for each network shows the mean over heads, the band around it the range.

    Args:
        similarities: For each network's name the result of :func:`head_similarity`.
    """
    figure, axes = new_figure(7, 4)
    for name, blocks in similarities.items():
        heads = [values.cpu() for values in blocks.values()]
        numbers = range(1, len(heads) + 1)
        means = [values.mean().item() for values in heads]
        label = f'{name}: {sum(means) / len(means):.2f}'
        (line,) = axes.plot(numbers, means, marker='o', label=label)
        lowest, highest = [values.min() for values in heads], [values.max() for values in heads]
        axes.fill_between(numbers, lowest, highest, color=line.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel='attention block', ylabel='largest cosine similarity with another head')
    axes.set_ylim(0, 1.03)
    axes.locator_params('x', integer=True)
    figure.legend(loc='outside upper center', ncols=3, frameon=False)
    return figure


def plot_kept(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot the share of channels that each block keeps, as in Figure 5 of the paper.

    Args:
        rows: Result of :func:`shares_kept`.
    """
    panels = dict(query='queries and keys', value='values', ffn='FFNs')
    figure, plots = new_figure(10, 3, 1, 3, sharey=True)
    for axes, (kind, title) in zip(plots, panels.items(), strict=True):
        shares = [100 * row['share'] for row in rows if row['kind'] == kind]
        numbers = range(1, len(shares) + 1)
        axes.bar(numbers, [100] * len(shares), color='0.9')
        axes.bar(numbers, shares, color='tab:blue')
        axes.set(title=title, xlabel='block')
        axes.locator_params('x', integer=True)
    plots[0].set_ylabel('channels kept, %')
    return figure


def plot_shares(profiles: Mapping[str, Sequence[Row]]) -> Figure:
    """Plot the share of each kind of operator, one bar per network, as in Figure 2 of the paper.

    Args:
        profiles: For each network's name the result of :func:`profile_runtime`.
    """
    figure, axes = new_figure(9, 1.6 + 0.5 * len(profiles))
    from matplotlib import colormaps

    reds, blues = colormaps['Reds'], colormaps['Blues']
    shades = {kind: reds(0.75 - 0.13 * index) for index, kind in enumerate(MEMORY_BOUND)}
    shades |= {kind: blues(0.45 + 0.3 * index) for index, kind in enumerate(COMPUTE_BOUND)}
    shares = [kind_shares(rows) for rows in profiles.values()]
    starts = [0.0] * len(shares)
    for kind, shade in shades.items():
        widths = [100 * share.get(kind, 0.0) for share in shares]
        bars = axes.barh(list(profiles), widths, left=starts, color=shade, label=kind)
        labels = [f'{width:.0f}' if width >= 3 else '' for width in widths]
        axes.bar_label(bars, labels, label_type='center', fontsize=8)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel('share of the time in operators, %: memory-bound red, compute-bound blue')
    axes.spines['left'].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc='outside upper center', ncols=4, fontsize=8, frameon=False)
    return figure


def plot_memory_bound(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot the share of time in memory-bound operators over the share of attention.

    Args:
        rows: For each network its ``name``, and ``attention`` and ``memory_bound`` from 0 to 1.
    """
    figure, axes = new_figure(6, 4)
    for name in dict.fromkeys(row['name'] for row in rows):
        chosen = [row for row in rows if row['name'] == name]
        x, y = ([100 * row[key] for row in chosen] for key in ('attention', 'memory_bound'))
        axes.plot(x, y, marker='o', label=name)
    axes.set(xlabel='attention layers, % of all layers', ylabel='time in memory-bound operators, %')
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def plot_speeds(rows: Sequence[dict[str, Any]]) -> Figure:
    """Plot the speed ``ratio`` and its quartiles of each network by its ``change``."""
    figure, axes = new_figure(9, 1 + 0.3 * len(rows))
    ratios = [row['ratio'] for row in rows]
    errors = [
        [row['ratio'] - row['ratio_low'] for row in rows],
        [row['ratio_high'] - row['ratio'] for row in rows],
    ]
    colors = ['tab:red', *['tab:blue'] * (len(rows) - 1)]
    bars = axes.barh([row['change'] for row in rows], ratios, xerr=errors, color=colors)
    axes.bar_label(bars, [f'{ratio:.2f}' for ratio in ratios], label_type='center', color='white')
    axes.invert_yaxis()
    axes.set_xlabel('speed, relative to the first, with quartiles')
    return figure


def draw_matrix(
    shares: np.ndarray, texts: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> tuple[Figure, Any]:
    """Draw values from 0 to 1 as colors, with texts in the cells if they are at most 30 x 30."""
    side = 1.2 + 0.5 * len(shares)
    figure, axes = new_figure(max(side + 1, 4.5), max(side, 3.8))
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    if len(shares) <= 30:
        for row, column in np.argwhere(texts != ''):
            color = 'white' if shares[row, column] > 0.6 else 'black'
            text = texts[row, column]
            axes.text(column, row, text, ha='center', va='center', color=color, fontsize=8)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha='right')
    axes.set_yticks(range(len(rows)), rows)
    return figure, axes
