"""Turns what the docstrings have of reStructuredText into Markdown, for the reference."""

import re

import griffe

# What is found by its place in the text, and what takes its place.
REPLACEMENTS = (
    # `text <address>`_, which may be broken into lines.
    (re.compile(r'(?<!`)`([^`<]+?)\s+<([^`>]+)>`_+'), r'[\1](\2)'),
    # :class:`mmdet.models.RetinaHead`
    (re.compile(r':(?:class|func|meth|mod|attr):`~?([^`]+)`'), r'`\1`'),
    # A block of code is announced by two colons.
    (re.compile(r'::$', re.MULTILINE), ':'),
    # As Griffe wants the section called, to show it as code.
    (re.compile(r'^( *)Example:$', re.MULTILINE), r'\1Examples:'),
)


class MarkdownDocstrings(griffe.Extension):
    """An extension of Griffe, which mkdocs.yml names."""

    def on_instance(self, *, obj, **kwargs):
        """Rewrite the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text):
    """Rewrite a docstring.

    Args:
        text (str): The docstring.

    Returns:
        str: The same in Markdown.

    Example:
        >>> to_markdown('See :class:`SandwichBlock` and `the paper <https://arxiv.org>`_.')
        'See `SandwichBlock` and [the paper](https://arxiv.org).'
    """
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text
