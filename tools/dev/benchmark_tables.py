"""Write the tables of docs/benchmark.md from the CSV files of tools/benchmark.py.

    python tools/dev/benchmark_tables.py

A comment such as ``<!-- benchmarks/peers.csv latency -->`` and ``<!-- end -->`` enclose a table of
this column, with a row per network and a column per form. Forms that failed are left empty.
"""

import csv
import re
import textwrap
from pathlib import Path

from mmevit.benchmark.report import COLUMNS
from mmevit.utils.tables import format_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/benchmark.md'
TABLE = re.compile(r'(<!-- (\S+\.csv) (\w+) -->\n).*?(<!-- end -->\n)', re.DOTALL)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(fill_tables(PAGE.read_text()))


def fill_tables(text: str) -> str:
    """Replace all tables of a page."""
    return TABLE.sub(lambda table: fill_table(*table.groups()), text)


def fill_table(start: str, path: str, column: str, end: str) -> str:
    """Return a table between its comments, and how it was measured."""
    with (ROOT / path).open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    forms = dict.fromkeys(row['form'] for row in rows)
    networks: dict[str, dict[str, object]] = {}
    for row in rows:
        network = networks.setdefault(row['model'], dict(model=row['model']))
        if row[column]:
            network[row['form']] = float(row[column])
        if row['top1']:
            network['top1'] = float(row['top1'])
    heading, number = COLUMNS[column] if column != 'ratio' else ('ratio', '{:.2f}')
    columns = {form: (f'`{form}`', number) for form in forms}
    table = format_table(
        list(networks.values()),
        dict(model=('model', '{}'), **columns, top1=COLUMNS['top1']),
    )
    note = (
        f'{heading}, batch size {rows[0]["batch_size"]}, threads: {rows[0]["threads"]}. '
        f'Measured on {rows[0]["date"]}, {rows[0]["processor"]}, {rows[0]["versions"]}.'
    )
    return f'{start}\n{table}\n\n{textwrap.fill(note, 100)}\n\n{end}'


if __name__ == '__main__':
    main()
