"""Compare equally fast networks with different shares of attention layers (Figure 3, speed)."""

from argparse import Namespace
from functools import partial
from typing import Any

import torch

from mmevit.analysis import memory_bound_share, profile_runtime
from mmevit.analysis.plots import plot_memory_bound
from mmevit.analysis.subnetworks import find_subnetwork, measure_speedup
from mmevit.benchmark.measuring import check_setting, process_settings
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, argument, command, write_outputs
from mmevit.cli.benchmark_arguments import benchmark_arguments, make_setting
from mmevit.utils.errors import ConfigError
from mmevit.utils.progress import show_progress
from mmevit.utils.tables import format_table

COLUMNS = dict(
    name=('network', '{}'),
    attention=('attention', '{:.0%}'),
    ffn_ratio=('FFN ratio', '{:.2f}'),
    speedup=('speedup', '{:.2f}'),
    memory_bound=('memory-bound', '{:.1%}'),
)


@command(
    benchmark_arguments('swin-t or deit-t (default: both)', rounds=5),
    argument(
        '--speedup', 'speed of all networks relative to the original', type=float, default=1.25
    ),
    argument(
        '--attention',
        'shares of attention layers, from 0 to 1 (original: 0.5)',
        type=float,
        nargs='+',
        default=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    ),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Find and profile the networks, and print, write and plot the table."""
    if not all(0 <= share <= 1 for share in args.attention) or args.speedup <= 0:
        raise ConfigError('--attention must be from 0 to 1, and --speedup above 0.')
    setting = make_setting(args)
    check_setting(setting)
    torch.manual_seed(setting.seed)
    images = torch.randn(setting.batch_size, 3, *(setting.size or (224, 224)))
    images = images.to(setting.device)
    names = args.models or ['swin-t', 'deit-t']
    plans = [(name, share) for name in names for share in args.attention]
    with process_settings(setting):
        rows = [
            measure(name, share, args.speedup, images, setting.rounds)
            for name, share in show_progress(plans, 'Searching')
        ]
    print(f'{describe(setting)}\n\n{format_table(rows, COLUMNS)}')
    write_outputs(args, rows, COLUMNS, describe(setting), lambda: plot_memory_bound(rows))


def measure(
    name: str, attention_share: float, speedup: float, images: torch.Tensor, rounds: int
) -> dict[str, Any]:
    """Find one network (see :func:`find_subnetwork`) and profile it for a row of the table."""
    measure_pair = partial(measure_speedup, images=images, rounds=rounds)
    network, ffn_ratio, found = find_subnetwork(name, attention_share, speedup, measure_pair)
    network.to(images.device)
    return dict(
        name=name,
        attention=attention_share,
        ffn_ratio=ffn_ratio,
        speedup=found,
        memory_bound=memory_bound_share(profile_runtime(network, images, rounds)),
    )
