"""Errors with a message for the user, which commands print without a traceback."""

import contextlib
import logging
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping

from .versions import LIBRARIES

# What constructors and registries raise for wrong names and arguments. A RuntimeError is not among
# them: PyTorch raises it for devices, processes and memory.
CONFIG_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
# Packages whose errors about wrong names and arguments are those of a config.
PACKAGES = {'addict', 'mmevit', 'numpy', 'timm', 'torchvision', *(lib.module for lib in LIBRARIES)}


class UserError(ValueError):
    """Invalid user input; the message says what is wrong and what to do."""

    def __str__(self) -> str:
        """Return the message without the traceback of a DataLoader worker."""
        text = super().__str__()
        if not text.startswith('Caught '):
            return text
        return text.rstrip().rpartition('\n')[2].partition(': ')[2]


class ConfigError(UserError):
    """Invalid config, or data that do not fit it."""


class CheckpointError(UserError):
    """A checkpoint that is unreadable, unsafe, or does not fit the model."""


class CorruptCheckpointError(CheckpointError):
    """A corrupt or truncated checkpoint."""


def one_line(error: BaseException) -> str:
    """Format an error as its type, unless it is a UserError, and the first line of its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = ' '.join(lines[0].split())[:200] if lines else ''
    return reason if isinstance(error, UserError) else f'{type(error).__name__}: {reason}'


@contextlib.contextmanager
def reraise_as_config_error() -> Iterator[None]:
    """Reraise errors about wrong names and arguments as ConfigError, with their file and line.

    Others keep their type and traceback: errors of devices, processes, disks, downloads and
    checkpoints, and those from modules of other packages, such as the user's own.
    """
    try:
        yield
    except UserError:
        raise
    except CONFIG_ERRORS as error:
        if involves_user_code(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f'Cannot build from the config: {one_line(error)} ({place.filename}, line '
            f'{place.lineno}).'
        ) from error


def involves_user_code(error: BaseException) -> bool:
    """Whether the traceback contains code that is not of :data:`PACKAGES`."""
    for cause in walk_causes(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            package = frame.f_globals.get('__name__', '').partition('.')[0]
            if package not in PACKAGES and package not in sys.stdlib_module_names:
                return True
    return False


def walk_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the one that led to it, and so on to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def list_problems(names_by_problem: Mapping[str, Collection]) -> list[str]:
    """List the problems that have any names, each with the first few of them."""
    return [f'{what} {shorten(names)}' for what, names in names_by_problem.items() if names]


def shorten(names: Iterable) -> str:
    """Join the first four names and count the others, as in ``a, b, c, d and 3 more``."""
    names = [str(name) for name in names]
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')


def warn(message: str) -> None:
    """Log a warning, with mmengine's logger if it has been imported."""
    if 'mmengine' in sys.modules:
        from mmengine.logging import print_log

        print_log(message, logger='current', level=logging.WARNING)
    else:
        logging.getLogger('mmevit').warning(message)
