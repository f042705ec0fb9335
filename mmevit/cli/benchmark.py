"""Measure the speed of networks side by side: mmevit's and any of mmpretrain, timm and mmdet."""

import argparse
from collections.abc import Sequence

from mmevit.benchmark import (
    benchmark,
    best_forms,
    find_models,
    format_results,
    select_paper_models,
    write_plot,
    write_results,
)
from mmevit.benchmark.forms import FORMS
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, check_outputs
from mmevit.cli.benchmark_arguments import add_arguments, make_setting
from mmevit.cli.errors import report_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        '--forms',
        nargs='+',
        default=['folded', 'traced'],
        metavar='FORM',
        help=f'what to measure: {", ".join(FORMS)}; append -bfloat16, -float16 or -int8 for '
        'another dtype, as in aoti-bfloat16 (default: folded traced)',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help='run eager and folded forms channels-last'
    )
    parser.add_argument(
        '--leave-allocator',
        action='store_true',
        help='do not make the allocator keep freed memory, which makes times steadier',
    )
    parser.add_argument('--seconds', type=float, default=0.25, help='duration of a measurement')
    parser.add_argument(
        '--baseline', metavar='MODEL:FORM', help='what ratios refer to (default: the first)'
    )
    parser.add_argument(
        '--paper',
        action='store_true',
        help='measure all or the given networks of Tables 2 and 3 of the paper, and show the '
        'fastest form of each',
    )
    add_output_arguments(parser)
    return parser.parse_args(argv)


@report_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure the networks, and print and write the results."""
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
    print(f'{describe(setting)}\n\n{format_results(shown)}')
    if args.out:
        # JSON files keep all forms.
        write_results(rows if args.out.endswith('.json') else shown, setting, args.out)
    if args.plot:
        write_plot(rows, setting, args.plot)
