"""Tables of results as Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import atomic_write, check_ending

Rows = Sequence[Mapping[str, Any]]
Columns = Mapping[str, tuple[str, str]]

# Suffixes of the files that tables are written to.
TABLES = ('.md', '.csv', '.json')


def format_table(rows: Rows, columns: Columns) -> str:
    """Format rows as a Markdown table.

    Args:
        rows: Values by column. Missing values and None are left empty, strings are not formatted.
        columns: Heading and format of each column. A format may name other values of the row, such
            as ``'{:.1f} ({unit})'``. Columns with format ``'{}'`` are aligned left.

    Example:
        >>> rows = [dict(name='a', speed=1.234), dict(name='b')]
        >>> print(format_table(rows, dict(name=('model', '{}'), speed=('images/s', '{:.1f}'))))
        | model | images/s |
        |---|---:|
        | a | 1.2 |
        | b |  |
    """
    table = [[heading for heading, _ in columns.values()]]
    table += [[format_cell(row, name, form) for name, (_, form) in columns.items()] for row in rows]
    lines = ['| ' + ' | '.join(text.replace('|', '/') for text in cells) + ' |' for cells in table]
    alignments = ['---' if form == '{}' else '---:' for _, form in columns.values()]
    return '\n'.join([lines[0], '|' + '|'.join(alignments) + '|', *lines[1:]])


def format_cell(row: Mapping[str, Any], name: str, form: str) -> str:
    """Format one value of a row."""
    value = row.get(name)
    if value is None:
        return ''
    return value if isinstance(value, str) else form.format(value, **row)


def write_table(rows: Rows, columns: Columns, note: str, path: str | Path) -> None:
    """Write rows to a .md, .csv or .json file; the last two hold all values, unrounded.

    The note, how they were measured, is not in CSV files.
    """
    markdown = f'{note}\n\n{format_table(rows, columns)}\n'
    write_formats(path, markdown, rows, dict(note=note, rows=rows))


def write_formats(path: str | Path, markdown: str, rows: Rows, content: dict[str, Any]) -> None:
    """Write ``markdown``, ``rows`` as CSV, or ``content`` as JSON, depending on the suffix."""
    check_ending(path, TABLES)
    with (
        atomic_write(path) as unfinished,
        unfinished.open('w', newline='', encoding='utf-8') as file,
    ):
        if unfinished.suffix == '.md':
            file.write(markdown)
        elif unfinished.suffix == '.json':
            json.dump(content, file, indent=1)
        else:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
