"""Check the libraries that mmevit stands on, before one of them fails in a less helpful way."""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

from packaging.version import Version


class Library(NamedTuple):
    """A library and the versions of it that mmevit works with.

    Args:
        module (str): Name that it is imported by.
        distributions (tuple[str]): Names that it is installed by, the maintained build first.
        minimum (str): Oldest version that works.
        below (str): Oldest version that is not known to work.
        required (bool): Whether mmevit needs it, rather than uses it where it is installed.
    """

    module: str
    distributions: tuple
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


def check_libraries(libraries=LIBRARIES):
    """Check that every library is installed in a version that works.

    Args:
        libraries (Sequence[Library]): What to check. Defaults to all that mmevit uses.

    Raises:
        ImportError: If one is missing or its version does not fit, in one sentence that says what
            is installed, what is needed and how to get it.

    Example:
        >>> check_libraries()
    """
    for library in libraries:
        name, installed = installed_distribution(library)
        if installed is None:
            # A module without a distribution is a source tree on the path: its user's business.
            fits = not library.required or find_spec(library.module) is not None
        else:
            fits = Version(library.minimum) <= Version(installed) < Version(library.below)
        if not fits:
            found = f'{name} {installed} is installed' if installed else f'{name} is not installed'
            needed = f'{name}>={library.minimum},<{library.below}'
            raise ImportError(
                f'{found}, and mmevit needs {needed}: get it with pip install "{needed}".'
            )


def installed_distribution(library):
    """Find what a library is installed by.

    Args:
        library (Library): The library.

    Returns:
        tuple[str, str | None]: Name and version of the distribution; if there is none, the name of
        the maintained build and None.

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


def attention_as_products():
    """Have PyTorch compute attention by matrix products, since it counts no others on a CPU.

    Returns:
        contextlib.AbstractContextManager: For as long as it is so.

    Example:
        >>> with attention_as_products():
        ...     pass
    """
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before PyTorch 2.3
        from torch.backends.cuda import sdp_kernel

        return sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


def cpu_capability() -> str:
    """Instruction set that PyTorch uses on this CPU, such as ``AVX512``; empty if unknown."""
    import torch

    # torch.backends.cpu.get_cpu_capability() is missing before PyTorch 2.1.
    return ' '.join(re.findall('CPU capability usage: (.+)', torch.__config__.show()))
