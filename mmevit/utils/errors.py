"""Errors whose message is one sentence for the user; the tools end with it."""

import contextlib
import sys
import traceback

# What constructors and registries raise for wrong names and arguments. A RuntimeError is not among
# them: PyTorch raises it for devices, processes and memory.
CONFIG_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
LIBRARIES = {
    'addict',
    'mmcv',
    'mmdet',
    'mmengine',
    'mmevit',
    'mmpretrain',
    'mmseg',
    'numpy',
    'timm',
    'torch',
    'torchvision',
}


class UserError(ValueError):
    """What the user gave cannot be used; the message says why and what to do."""

    def __str__(self):
        """The message; DataLoader puts the traceback of its worker before it."""
        text = super().__str__()
        if not text.startswith('Caught '):
            return text
        return text.rstrip().rpartition('\n')[2].partition(': ')[2]


class ConfigError(UserError):
    """A config asks for what is not there or does not fit."""


class CheckpointError(UserError):
    """A checkpoint cannot be read, is not safe to read, or does not fit the model."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is not whole."""


def one_line(error):
    r"""Say in one line what an error is that a library raised.

    Args:
        error (Exception): The error.

    Returns:
        str: Its type and the first line of its message; of a :class:`UserError` the message alone.

    Example:
        >>> one_line(ValueError('no  such thing,\nand more'))
        'ValueError: no such thing,'
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = ' '.join(lines[0].split())[:200] if lines else ''
    return reason if isinstance(error, UserError) else f'{type(error).__name__}: {reason}'


@contextlib.contextmanager
def reraise_as_config_error():
    """Raise :class:`ConfigError` for what OpenMMLab or PyTorch raise for wrong names and arguments.

    All else keeps its type and its traceback: errors of devices, processes, disks, downloads and
    checkpoints, and those from modules of other packages, such as the user's own.

    Raises:
        ConfigError: In place of such an error, with its place.
    """
    try:
        yield
    except UserError:
        raise
    except CONFIG_FAULTS as error:
        if raised_by_others(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f'Cannot build from the config: {one_line(error)} ({place.filename}, line '
            f'{place.lineno}).'
        ) from error


def raised_by_others(error: BaseException | None) -> bool:
    """Whether code outside this package and its libraries took part in raising an error."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            package = frame.f_globals.get('__name__', '').partition('.')[0]
            if package not in LIBRARIES and package not in sys.stdlib_module_names:
                return True
        error = error.__cause__ or error.__context__
    return False


def list_problems(names_by_problem):
    """List those of some problems that there are.

    Args:
        names_by_problem (dict[str, Collection]): For each problem what has it, perhaps nothing.

    Returns:
        list[str]: For each problem that something has, the problem and the first names.

    Example:
        >>> list_problems({'lacks': ['a', 'b'], 'has besides': []})
        ['lacks a, b']
    """
    return [f'{what} {shorten(names)}' for what, names in names_by_problem.items() if names]


def shorten(names):
    """Join names for a message, but not all of very many.

    Args:
        names (Iterable): The names.

    Returns:
        str: The first few.

    Example:
        >>> shorten('abcdefg')
        'a, b, c, d and 3 more'
    """
    names = [str(name) for name in names]
    return ', '.join(names[:4]) + (f' and {len(names) - 4} more' if len(names) > 4 else '')
