"""Check the installed versions of PyTorch and OpenMMLab."""

import contextlib
import functools
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple


class Library(NamedTuple):
    """A library and the versions of it that mmevit works with."""

    module: str
    distributions: tuple[str, ...]  # names to install, the maintained build first
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


# The other packages of the extra `openmmlab`.
REQUIRED = ('torch', 'filelock', 'msgspec', 'packaging', 'safetensors')


def check_libraries(libraries: Sequence[Library] = LIBRARIES) -> None:
    """Raise ImportError if a library is missing or its version is not supported."""
    for module in REQUIRED:
        if find_spec(module) is None:
            raise ImportError(
                f'{module} is not installed, but mmevit needs it, except for mmevit.runtime. '
                'Run pip install "mmevit[openmmlab]".'
            )
    from packaging.version import Version

    for library in libraries:
        name, installed = installed_distribution(library.distributions)
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
    """Whether an optional library of OpenMMLab is installed; warns if it cannot be imported."""
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


def installed_distribution(names: Sequence[str]) -> tuple[str, str | None]:
    """Return the first distribution that is installed, and its version, else the first and None."""
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            return name, version(name)
    return names[0], None
