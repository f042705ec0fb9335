"""The tables of the docs are those of the measurements that are kept."""

import runpy

TOOL = runpy.run_path('tools/dev/benchmark_tables.py')


def test_tables_of_the_docs_are_those_of_the_csv_files():
    page = TOOL['PAGE'].read_text()
    found = [path for _, path, *_ in TOOL['TABLE'].findall(page)]
    kept = (TOOL['ROOT'] / 'benchmarks').glob('*.csv')
    assert {*found} == {f'benchmarks/{path.name}' for path in kept}
    assert TOOL['fill_tables'](page) == page, 'Run python tools/dev/benchmark_tables.py.'
