"""Tables of what was measured, for people and for machines, and pictures beside them."""

import csv
import json

from .files import atomic_write, check_ending


def format_table(rows, columns):
    """Format rows as a Markdown table.

    Args:
        rows (list[dict]): What is known of each, by the names of the columns; None and what is
            missing stay empty.
        columns (dict[str, tuple[str, str]]): For each column its heading and how its values are
            formatted, such as ``'{:.1f}'``; those of ``'{}'`` are words.

    Returns:
        str: The table.

    Example:
        >>> rows = [dict(name='a', speed=1.234), dict(name='b')]
        >>> print(format_table(rows, dict(name=('model', '{}'), speed=('images/s', '{:.1f}'))))
        | model | images/s |
        |---|---:|
        | a | 1.2 |
        | b |  |
    """
    headings = [heading for heading, _ in columns.values()]
    lines = [[cell(row.get(name), form) for name, (_, form) in columns.items()] for row in rows]
    return join_cells(headings, lines, [form == '{}' for _, form in columns.values()])


def cell(value, form):
    """Format one value."""
    return '' if value is None else form.format(value)


def join_cells(headings, lines, are_words):
    """Join the cells of a Markdown table.

    Args:
        headings (Sequence[str]): The first line.
        lines (Sequence[Sequence[str]]): The others.
        are_words (Sequence[bool]): For each column whether it holds words, which stand on the left.

    Returns:
        str: The table.
    """
    rules = ['---' if is_words else '---:' for is_words in are_words]
    lines = [[text.replace('|', '/') for text in cells] for cells in (headings, *lines)]
    table = ['| ' + ' | '.join(cells) + ' |' for cells in lines]
    table.insert(1, '|' + '|'.join(rules) + '|')
    return '\n'.join(table)


def write_table(rows, columns, note, path):
    """Write rows to a file.

    Args:
        rows (list[dict]): See :func:`format_table`.
        columns (dict[str, tuple[str, str]]): The columns of a Markdown table. The others keep all
            that the rows have, unrounded.
        note (str): A line that says how it was measured; CSV has no place for it.
        path (str | Path): A file that ends as one of ``TABLES`` does.

    Raises:
        UserError: If it ends otherwise, or cannot be written.
    """
    check_ending(path, TABLES)
    mode = dict(mode='w', newline='', encoding='utf-8')
    with atomic_write(path) as unfinished, unfinished.open(**mode) as file:
        if unfinished.suffix == '.md':
            file.write(f'{note}\n\n{format_table(rows, columns)}\n')
        elif unfinished.suffix == '.json':
            json.dump(dict(note=note, rows=rows), file, indent=1)
        else:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)


# What tables to write may end in.
TABLES = ('.md', '.csv', '.json')
