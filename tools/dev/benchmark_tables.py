"""Write the tables of docs/benchmark.md from the CSV files of tools/benchmark.py.

    python tools/dev/benchmark_tables.py

A comment such as ``<!-- benchmarks/types.csv speed: top1 -->`` and ``<!-- end -->`` enclose a
table with a row per network: the first column (here the speed) of each form, then the others, of
the fastest form. Forms that failed are left empty.
"""

import csv
import re
import textwrap
from pathlib import Path
from typing import Any

from mmevit.benchmark import best_forms
from mmevit.benchmark.report import COLUMNS
from mmevit.utils.tables import format_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/benchmark.md'
TABLE = re.compile(r'(<!-- (\S+\.csv) (\w+):([\w ]*) -->\n).*?(<!-- end -->\n)', re.DOTALL)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(fill_tables(PAGE.read_text()))


def fill_tables(text: str) -> str:
    """Replace all tables of a page."""
    return TABLE.sub(lambda table: fill_table(*table.groups()), text)


def fill_table(start: str, path: str, column: str, others: str, end: str) -> str:
    """Return a table between its comments, and how it was measured."""
    rows = read_rows(path)
    networks = {row['model']: {'model': row['model']} | row for row in best_forms(rows)}
    for row in rows:
        networks[row['model']][row['form']] = row.get(column)
    heading, number = COLUMNS[column]
    forms = {row['form']: (f'`{row["form"]}`', number) for row in rows}
    shown = {name: COLUMNS[name] for name in others.split()}
    table = format_table(list(networks.values()), dict(model=('model', '{}')) | forms | shown)
    first = rows[0]
    note = (
        f'{heading}, batch size {first["batch_size"]}, threads: {first["threads"]}. '
        f'Measured on {first["date"]}, {first["processor"]}, {first["versions"]}.'
    )
    return f'{start}\n{table}\n\n{textwrap.fill(note, 100)}\n\n{end}'


def read_rows(path: str) -> list[dict[str, Any]]:
    """Read a file, without empty cells."""
    with (ROOT / path).open(newline='', encoding='utf-8') as file:
        table = list(csv.DictReader(file))
    return [
        {name: float(cell) if name in COLUMNS else cell for name, cell in row.items() if cell}
        for row in table
    ]


if __name__ == '__main__':
    main()
