"""Convert reStructuredText in docstrings to Markdown, for the API reference."""

import re
from typing import Any

import griffe

REPLACEMENTS = (
    # `text <address>`_, possibly over several lines.
    (re.compile(r'(?<!`)`([^`<]+?)\s+<([^`>]+)>`_+'), r'[\1](\2)'),
    # :class:`mmdet.models.RetinaHead`
    (re.compile(r':(?:class|func|meth|mod|attr):`~?([^`]+)`'), r'`\1`'),
    # Two colons before a code block.
    (re.compile(r'::$', re.MULTILINE), ':'),
    # The name that Griffe expects for the section.
    (re.compile(r'^( *)Example:$', re.MULTILINE), r'\1Examples:'),
)


class MarkdownDocstrings(griffe.Extension):
    """Griffe extension, used in mkdocs.yml."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Convert a docstring to Markdown.

    Example:
        >>> to_markdown('See :class:`SandwichBlock` and `the paper <https://arxiv.org>`_.')
        'See `SandwichBlock` and [the paper](https://arxiv.org).'
    """
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text
