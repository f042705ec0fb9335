"""Profile the runtime of networks: memory-bound and compute-bound operators (Figure 2)."""

import re
from argparse import Namespace
from typing import Any

from mmevit.analysis import memory_bound_share, plot_shares, profile_runtime, sum_rows
from mmevit.benchmark import Setting, find_models
from mmevit.benchmark.measuring import check_setting, prepare_network, process_settings
from mmevit.benchmark.models import Model, fold_all
from mmevit.benchmark.report import describe
from mmevit.cli.arguments import add_output_arguments, argument, command, flag, write_outputs
from mmevit.cli.benchmark_arguments import benchmark_arguments, make_setting
from mmevit.utils.progress import show_progress
from mmevit.utils.tables import format_table

COLUMNS = dict(
    share=('time', '{:.1%}'),
    ms=('ms', '{:.2f}'),
    mib=('MiB moved', '{:.1f}'),
    mflops=('MFLOPs', '{:.0f}'),
    intensity=('FLOPs per byte', '{:.1f}'),
)


@command(
    benchmark_arguments(),
    flag('--deploy', 'fold batch norms first'),
    argument('--rows', 'number of operators and modules to print', type=int, default=12),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Profile networks, and print, write and plot the tables."""
    setting = make_setting(args)
    models = find_models(args.models)
    check_setting(setting)
    with process_settings(setting):
        profiles = {
            model.label: profile(model, setting, args.deploy)
            for model in show_progress(models, 'Profiling')
        }
    note = describe(setting)
    print(note)
    for name, rows in profiles.items():
        share = memory_bound_share(rows)
        print(f'\n{name}: {share:.1%} of the time in operators is memory-bound.')
        for key in ('kind', 'operator', 'module'):
            shown = [in_units(row) for row in sum_rows(rows, key)[: args.rows]]
            print(f'\n{format_table(shown, {key: (key, "{}"), **COLUMNS})}')
    rows = [dict(model=name, **in_units(row)) for name in profiles for row in profiles[name]]
    words = {name: (name, '{}') for name in ('model', 'kind', 'operator', 'module')}
    numbers = {name: COLUMNS[name] for name in ('ms', 'mib', 'mflops')}
    write_outputs(args, rows, words | numbers, note, lambda: plot_shares(profiles))


def profile(model: Model, setting: Setting, deploy: bool) -> list[dict[str, Any]]:
    """Profile one network with :func:`profile_runtime`, folded if ``deploy``."""
    network, images = prepare_network(model, setting)
    if deploy:
        network = fold_all(network, images[:1])
    rows = profile_runtime(network, images, setting.rounds)
    return [dict(row, module=re.sub(r'^model\.?', '', row['module'])) for row in rows]


def in_units(row: dict[str, Any]) -> dict[str, Any]:
    """Add the units of the tables to a row."""
    return dict(row, ms=row['seconds'] * 1e3, mib=row['bytes'] / 2**20, mflops=row['flops'] / 1e6)
