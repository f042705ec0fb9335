"""Check the installed versions of PyTorch and OpenMMLab."""

import functools
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

from packaging.version import Version


class Library(NamedTuple):
    """A library and the versions of it that mmevit works with.

    Args:
        module: Name to import.
        distributions: Names to install, the maintained build first.
        minimum: Oldest supported version.
        below: Oldest version that is not supported.
        required: Whether mmevit cannot do without it.
    """

    module: str
    distributions: tuple[str, ...]
    minimum: str
    below: str
    required: bool


LIBRARIES = (
    Library('torch', ('torch',), '2.0.0', '3.0.0', True),
    Library('mmengine', ('onedl-mmengine', 'mmengine', 'mmengine-lite'), '0.8.3', '1.0.0', True),
    Library('mmcv', ('onedl-mmcv', 'mmcv', 'mmcv-lite'), '2.0.0', '3.0.0', True),
    Library('mmdet', ('onedl-mmdetection', 'mmdet'), '3.3.0', '4.0.0', False),
    Library('mmseg', ('onedl-mmsegmentation', 'mmsegmentation'), '1.2.0', '2.0.0', False),
    Library('mmpretrain', ('onedl-mmpretrain', 'mmpretrain'), '1.2.0', '2.0.0', False),
)


def check_libraries(libraries: Sequence[Library] = LIBRARIES) -> None:
    """Check that every library is installed in a supported version.

    Raises:
        ImportError: If one is missing or its version is not supported.

    Example:
        >>> check_libraries()
    """
    for library in libraries:
        name, installed = installed_distribution(library)
        if installed is None:
            # A module without a distribution is a source tree on the path of unknown version.
            fits = not library.required or find_spec(library.module) is not None
        else:
            fits = Version(library.minimum) <= Version(installed) < Version(library.below)
        if not fits:
            found = f'{name} {installed} is installed' if installed else f'{name} is not installed'
            needed = f'{name}>={library.minimum},<{library.below}'
            raise ImportError(f'{found}, but mmevit needs {needed}. Run pip install "{needed}".')


@functools.cache
def can_import(library: str) -> bool:
    """Whether an optional library of OpenMMLab is installed; warns if it cannot be imported.

    Example:
        >>> can_import('no_such_library')
        False
    """
    if find_spec(library) is None:
        return False
    try:
        import_module(f'{library}.models')
    # A library whose dependencies do not fit may raise anything.
    except Exception as error:
        warnings.warn(
            f'{library} is installed, but cannot be imported ({type(error).__name__}: {error}). '
            f'What mmevit has for {library} is not available.',
            stacklevel=2,
        )
        return False
    return True


def installed_distribution(library: Library) -> tuple[str, str | None]:
    """Find the distribution that provides a library.

    Returns:
        Its name and version; the name of the maintained build and None if there is none.

    Example:
        >>> installed_distribution(Library('no_such', ('no-such',), '1', '2', True))
        ('no-such', None)
    """
    for name in library.distributions:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return library.distributions[0], None
