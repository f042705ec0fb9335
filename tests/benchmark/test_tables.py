"""The tables of the docs are those of the measurements that are kept."""

import runpy

TOOL = runpy.run_path('tools/dev/benchmark_tables.py')


def test_tables_of_the_docs_are_those_of_the_csv_files():
    page = TOOL['PAGE'].read_text()
    shown = {path for _, path, *_ in TOOL['TABLE'].findall(page)}
    kept = {f'benchmarks/{path.name}' for path in (TOOL['ROOT'] / 'benchmarks').glob('*.csv')}
    assert kept - shown <= {'benchmarks/gpu_throughput.csv'}  # which `make gpu-check` writes
    assert TOOL['fill_tables'](page) == page, 'Run python tools/dev/benchmark_tables.py.'
