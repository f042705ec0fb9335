"""Measure the speed of networks side by side: mmevit's and any of mmpretrain, timm and mmdet."""

from argparse import Namespace

from mmevit.benchmark import (
    benchmark,
    best_forms,
    find_models,
    format_results,
    select_models,
    write_plot,
    write_results,
)
from mmevit.benchmark.forms import FORMS
from mmevit.benchmark.models import DETECTORS, PAPER_MODELS, PEERS
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, argument, command, exclusive, flag
from mmevit.cli.benchmark_arguments import benchmark_arguments, make_setting


@command(
    benchmark_arguments(),
    argument(
        '--forms',
        f'what to measure: {", ".join(FORMS)}; append -bfloat16, -float16 or -int8 for '
        'another dtype, as in aoti-bfloat16 (default: folded traced)',
        nargs='+',
        default=['folded', 'traced'],
        metavar='FORM',
    ),
    flag('--channels-last', 'run eager, folded and cudagraph forms channels-last'),
    flag(
        '--leave-allocator',
        'use the default allocator settings, with which times vary more',
    ),
    argument('--seconds', 'duration of a measurement', type=float, default=0.25),
    argument('--baseline', 'what ratios refer to (default: the first)', metavar='MODEL:FORM'),
    exclusive(
        flag(
            '--paper',
            'measure all or the given networks of Tables 2 and 3 of the paper, and show the '
            'fastest form of each',
        ),
        flag('--peers', 'measure all or the given newer classifiers of timm, and ours'),
        flag(
            '--detectors',
            'measure all or the given detectors: ours, RTMDet, YOLOX, SSDLite and RetinaNet',
        ),
    ),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Measure the networks, and print and write the results."""
    setting = make_setting(
        args,
        channels_last=args.channels_last,
        seconds=args.seconds,
        keep_memory=not args.leave_allocator,
    )
    tables = [(args.paper, PAPER_MODELS), (args.peers, PEERS), (args.detectors, DETECTORS)]
    table = next((models for is_chosen, models in tables if is_chosen), None)
    models = find_models(args.models) if table is None else select_models(table, args.models)
    rows = benchmark(models, args.forms, setting, args.baseline)
    shown = best_forms(rows) if args.paper else rows
    print(f'{describe(setting)}\n\n{format_results(shown)}')
    if args.out:
        write_results(shown if args.out.endswith('.md') else rows, setting, args.out)
    if args.plot:
        write_plot(rows, describe(setting), args.plot)
