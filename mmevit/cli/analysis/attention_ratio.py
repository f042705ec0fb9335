"""Compare networks of 0 to 60 % attention layers that are equally fast (Figure 3, speed)."""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from rich.progress import track

from mmevit.analysis import memory_bound_share, profile_runtime
from mmevit.analysis.subnetworks import find_subnetwork, measure_speedup, plot_memory_bound
from mmevit.benchmark.measuring import check_arguments, process_settings
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, check_outputs, write_outputs
from mmevit.cli.benchmark_arguments import add_arguments, make_setting
from mmevit.cli.errors import one_sentence_errors
from mmevit.utils.errors import ConfigError
from mmevit.utils.tables import format_table


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, 'swin-t or deit-t, both unless given')
    parser.add_argument(
        '--speedup', type=float, default=1.25, help='speed of all, relative to the original'
    )
    parser.add_argument(
        '--attention',
        type=float,
        nargs='+',
        default=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        help='shares of attention layers; 0.5 in the original',
    )
    add_output_arguments(parser)
    parser.set_defaults(rounds=5)
    return parser.parse_args(argv)


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Search, profile, print, and write what was asked for."""
    args = parse_args(argv)
    check_outputs(args)
    if not all(0 <= share <= 1 for share in args.attention) or args.speedup <= 0:
        raise ConfigError('--attention takes shares, from 0 to 1, and --speedup is above 0.')
    setting = make_setting(args)
    check_arguments([], ['eager'], setting, baseline=None)
    torch.manual_seed(setting.seed)
    images = torch.randn(setting.batch_size, 3, *(setting.size or (224, 224)))
    images = images.to(setting.device)
    plans = [(name, share) for name in args.models or NAMES for share in args.attention]
    with process_settings(setting):
        rows = [
            measure(name, share, args.speedup, images, setting.rounds)
            for name, share in track(plans, 'Searching', transient=True)
        ]
    print(f'{describe(setting)}\n\n{format_table(rows, COLUMNS)}')
    write_outputs(args, rows, COLUMNS, describe(setting), lambda: plot_memory_bound(rows))


NAMES = ('swin-t', 'deit-t')
COLUMNS = dict(
    name=('network', '{}'),
    attention=('attention', '{:.0%}'),
    ffn_ratio=('width of FFNs', '{:.2f}'),
    speedup=('speed', '{:.2f}'),
    memory_bound=('bound by memory', '{:.1%}'),
)


def measure(name, attention_share, speedup, images, rounds):
    """Find one network and profile it.

    Args:
        name (str): ``'swin-t'`` or ``'deit-t'``.
        attention_share (float): Share of attention layers.
        speedup (float): Speed, relative to the original.
        images (Tensor): A batch.
        rounds (int): Turns for each timing.

    Returns:
        dict: The row of the table.
    """
    in_turns = partial(measure_speedup, images=images, rounds=rounds)
    network, ffn_ratio, found = find_subnetwork(name, attention_share, speedup, in_turns)
    network.to(images.device)
    memory_bound = memory_bound_share(profile_runtime(network, images, rounds))
    return dict(
        name=name,
        attention=attention_share,
        ffn_ratio=ffn_ratio,
        speedup=found,
        memory_bound=memory_bound,
    )
