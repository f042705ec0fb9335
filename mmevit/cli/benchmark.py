"""Measure how fast networks are, side by side: ours and any of mmpretrain, timm and mmdet."""

import argparse
from collections.abc import Sequence

from mmevit.benchmark import (
    benchmark,
    best_forms,
    find_models,
    format_table,
    select_paper_models,
    write_plot,
    write_table,
)
from mmevit.benchmark.forms import FORMS
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import check_outputs
from mmevit.cli.benchmark_arguments import add_arguments, make_setting
from mmevit.cli.errors import one_sentence_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--forms',
        nargs='+',
        default=['folded', 'traced'],
        metavar='FORM',
        help=f'what they are run as: {", ".join(FORMS)}; in float32, or in bfloat16, float16 or '
        'int8 as in aoti-bfloat16. Defaults to folded traced',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='run eager and folded forms channels last'
    )
    parser.add_argument(
        '--leave-allocator',
        action='store_true',
        help='let the process give freed memory back, as one does that is left as it is',
    )
    parser.add_argument('--seconds', type=float, default=0.25, help='length of a turn')
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
    return parser.parse_args(argv)


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    args = parse_args(argv)
    check_outputs(args)
    setting = make_setting(
        args,
        channels_last=args.channels_last,
        seconds=args.seconds,
        keep_memory=not args.leave_allocator,
    )
    models = (select_paper_models if args.paper else find_models)(args.models)
    rows = benchmark(models, args.forms, setting, args.baseline)
    shown = best_forms(rows) if args.paper else rows
    print(f'{describe(setting)}\n\n{format_table(shown)}')
    if args.out:
        # The file for machines keeps what was slower too.
        write_table(rows if args.out.endswith('.json') else shown, setting, args.out)
    if args.plot:
        write_plot(rows, setting, args.plot)
