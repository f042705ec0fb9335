"""Write the tables of docs/benchmark.md, and a picture, from the CSV files of tools/benchmark.py.

    python tools/dev/benchmark_tables.py

A comment such as ``<!-- benchmarks/paper.csv speed: peak top1 -->`` and ``<!-- end -->`` enclose a
table with a row per network: the speed of each form, then the other columns, those of the fastest
form. Forms that failed are left empty.
"""

import csv
import re
import textwrap
from pathlib import Path
from typing import Any

from mmevit.benchmark import best_forms, write_plot
from mmevit.benchmark.report import COLUMNS
from mmevit.utils.tables import format_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/benchmark.md'
TABLE = re.compile(r'(<!-- (\S+\.csv) (\w+):([\w ]*) -->\n).*?(<!-- end -->\n)', re.DOTALL)
PLOTS = {'benchmarks/paper.csv': 'docs/speed.png'}


def main() -> None:
    """Rewrite the page and the pictures."""
    PAGE.write_text(fill_tables(PAGE.read_text()))
    for path, picture in PLOTS.items():
        rows = read_rows(path)
        write_plot(rows, describe(rows[0]), ROOT / picture)


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
    note = textwrap.fill(f'{heading}, {describe(rows[0])}', 100)
    return f'{start}\n{table}\n\n{note}\n\n{end}'


def read_rows(path: str) -> list[dict[str, Any]]:
    """Read a file, without empty cells."""
    with (ROOT / path).open(newline='', encoding='utf-8') as file:
        table = list(csv.DictReader(file))
    return [
        {name: float(cell) if name in COLUMNS else cell for name, cell in row.items() if cell}
        for row in table
    ]


def describe(row: dict[str, Any]) -> str:
    """Describe how a row was measured."""
    return (
        f'batch size {row["batch_size"]}, threads: {row["threads"]}. '
        f'Measured on {row["date"]}, {row["processor"]}, {row["versions"]}.'
    )


if __name__ == '__main__':
    main()
