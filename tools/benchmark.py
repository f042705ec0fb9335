"""Measure how fast networks are, side by side: ours and any of mmpretrain, timm and mmdet."""

import argparse

from mmevit.benchmark import (
    Setting,
    benchmark,
    best_forms,
    find_model,
    format_table,
    select_paper_models,
    write_plot,
    write_table,
)
from mmevit.benchmark.forms import FORMS
from mmevit.benchmark.report import WRITERS, describe
from mmevit.engine.launch import SizeAction, one_sentence_errors
from mmevit.errors import ConfigError
from mmevit.files import PICTURES, check_ending


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help='efficientvit-m4, a name that mmpretrain knows, timm::NAME, backbone::m4, or a config '
        'such as configs/retinanet_evit_m4.py or mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    )
    parser.add_argument(
        '--forms',
        nargs='+',
        default=['folded', 'traced'],
        metavar='FORM',
        help=f'what they are run as: {", ".join(FORMS)}; in float32, or in bfloat16, float16 or '
        'int8 as in aoti-bfloat16. Defaults to folded traced',
    )
    parser.add_argument('--batch', type=int, default=16, help='images at a time; 1 for latency')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    parser.add_argument('--size', action=SizeAction, help='image size')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument(
        '--channels-last', action='store_true', help='run eager and folded forms channels last'
    )
    parser.add_argument('--rounds', type=int, default=20, help='turns that each one gets')
    parser.add_argument('--seconds', type=float, default=0.25, help='length of a turn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--baseline', metavar='MODEL:FORM', help='what ratios are to; the first by default'
    )
    parser.add_argument(
        '--paper',
        action='store_true',
        help='run the networks of Tables 2 and 3 of the paper, or those given of them, and show '
        'each in its fastest form',
    )
    parser.add_argument('--out', help='table to write, .md, .csv or .json')
    parser.add_argument('--plot', help='picture of speed against published accuracy to write')
    return parser.parse_args()


def main():
    """Measure, print, and write what was asked for."""
    args = parse_args()
    for path, endings in ((args.out, WRITERS), (args.plot, PICTURES)):
        if path:
            check_ending(path, endings)
    setting = make_setting(args)
    rows = benchmark(find_models(args), args.forms, setting, args.baseline)
    shown = best_forms(rows) if args.paper else rows
    print(f'{describe(setting)}\n\n{format_table(shown)}')
    if args.out:
        # The file for machines keeps what was slower too.
        write_table(rows if args.out.endswith('.json') else shown, setting, args.out)
    if args.plot:
        write_plot(rows, setting, args.plot)


def find_models(args):
    """Find the networks that the command line names.

    Args:
        args (argparse.Namespace): The command line.

    Returns:
        list[Model]: The networks.

    Raises:
        ConfigError: If there are none.
    """
    if args.paper:
        return select_paper_models(args.models)
    if not args.models:
        raise ConfigError('Name at least one model, such as efficientvit-m4, or give --paper.')
    return [find_model(name) for name in args.models]


def make_setting(args):
    """Collect what all networks have in common.

    Args:
        args (argparse.Namespace): The command line.

    Returns:
        Setting: How to run them.
    """
    return Setting(
        batch_size=args.batch,
        threads=args.threads,
        size=args.size,
        device=args.device,
        channels_last=args.channels_last,
        rounds=args.rounds,
        seconds=args.seconds,
        seed=args.seed,
    )


if __name__ == '__main__':
    with one_sentence_errors():
        main()
