"""Declaration of commands, which also works without PyTorch and OpenMMLab."""

import argparse
import functools
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from mmevit.utils.errors import UserError
from mmevit.utils.files import check_ending

from .errors import report_errors

# Adds arguments to a parser, or to a group of it.
Adder = Callable[[Any], Any]


def argument(name: str, help: str | None = None, **options: Any) -> Adder:
    """Declare an argument, see :meth:`argparse.ArgumentParser.add_argument`."""
    return lambda parser: parser.add_argument(name, help=help, **options)


def flag(name: str, help: str) -> Adder:
    """Declare an argument without a value."""
    return argument(name, help, action='store_true')


def group(*adders: Adder) -> Adder:
    """Join declarations."""
    return lambda parser: [add(parser) for add in adders]


def exclusive(*adders: Adder) -> Adder:
    """Declare arguments of which only one may be given."""
    return lambda parser: group(*adders)(parser.add_mutually_exclusive_group())


def positive_int(text: str) -> int:
    """Parse an integer above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text} is not an integer above 0')
    return int(text)


def ends_in(*endings: str) -> Callable[[str], str]:
    """Return a parser of the names of files that end in one of some endings."""

    def parse(path: str) -> str:
        try:
            check_ending(path, endings)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return path

    return parse


# Arguments of commands that predict images and videos.
add_prediction_arguments = group(
    argument('inputs', 'images, videos or directories', nargs='+'),
    argument('--out-dir', 'directory for vis/ and preds/ (default: outputs)', default='outputs'),
    argument('--batch-size', 'batch size (default: 1)', type=positive_int, default=1),
    argument('--pred-score-thr', 'minimum score to draw (default: 0.3)', type=float, default=0.3),
    flag('--no-save-vis', 'do not write pictures'),
)


def command(*adders: Adder) -> Callable[[Callable[[Namespace], None]], Callable[..., None]]:
    """Make ``main(argv=None)`` of a function of the parsed arguments.

    The docstring of its module describes the command. An :class:`argparse.ArgumentError` is printed
    with the usage, other errors by :func:`report_errors`.
    """

    def decorate(run: Callable[[Namespace], None]) -> Callable[..., None]:
        @functools.wraps(run)
        @report_errors()
        def main(argv: Sequence[str] | None = None) -> None:
            parser = ArgumentParser(
                description=sys.modules[run.__module__].__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            group(*adders)(parser)
            args = parser.parse_args(argv)
            if 'trust_checkpoint' in args:
                from mmevit.checkpoint import forbid_code_in_checkpoints

                forbid_code_in_checkpoints(trust=args.trust_checkpoint)
            try:
                run(args)
            except argparse.ArgumentError as error:
                parser.error(error.message)

        return main

    return decorate
