"""Read checkpoint files without running code that they contain."""

import argparse
import codecs
import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import safe_open

from mmevit.utils.errors import CheckpointError, CorruptCheckpointError

from .matching import require_fit

# What torch.load() accepts as map_location.
MapLocation = str | torch.device | None
# PyTorch's messages for files that contain more than weights, in contrast to corrupt ones.
FORBIDDEN = r'GLOBAL|Unsupported (class|attribute)|unrecognized function|Can only'
# PyTorch's environment variables, which override the arguments of torch.load().
FORCE_SAFE, FORCE_UNSAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Whether code in checkpoints may run. Set by forbid_code_in_checkpoints(trust=True) only.
trust_checkpoints = False


def read_checkpoint(path: str | Path, map_location: MapLocation = 'cpu') -> dict:
    """Read a ``.pth`` or ``.safetensors`` file.

    In addition to tensors and plain values, only the log histories of mmengine and the command line
    of the authors' training script (``argparse.Namespace``) are allowed.

    Raises:
        CheckpointError: If the file is missing, corrupt or not a checkpoint, or contains objects
            that could run code.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(dict(bias=torch.ones(2)), folder + '/a.pth')
        ...     read_checkpoint(folder + '/a.pth')
        {'bias': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'The checkpoint {path} is missing or not a file. Check the path.')
    if path.stat().st_size == 0:
        raise CorruptCheckpointError(f'The checkpoint {path} is empty. Download or copy it again.')
    read = read_safetensors if path.suffix == '.safetensors' else read_pickle
    try:
        content = read(path, map_location)
    except (CheckpointError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    # Hostile bytes raise different errors, depending on where they are.
    except Exception as error:
        raise explain_error(error, path) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f'{path} is not a checkpoint: it contains a {type(content).__name__}. Pass a dict.'
        )
    return content


def forbid_code_in_checkpoints(trust: bool = False) -> None:
    """Read every checkpoint of this process safely, whatever loads it.

    Args:
        trust: Whether to do the opposite and let checkpoints run code.
    """
    global trust_checkpoints
    trust_checkpoints = trust
    # For other loaders. If weights_only=True fails, mmengine tries without it. The variable forbids
    # that.
    forced, other = (FORCE_UNSAFE, FORCE_SAFE) if trust else (FORCE_SAFE, FORCE_UNSAFE)
    os.environ[forced] = '1'
    # If both are set, torch.load() refuses every file.
    os.environ.pop(other, None)
    if trust:
        return

    # mmengine logs the part of the name after `load_from_`.
    @CheckpointLoader.register_scheme(prefixes='', force=True)  # pyright: ignore[reportOptionalCall]
    def load_from_local(filename: str, map_location: MapLocation = None) -> dict:
        return require_fit(read_checkpoint(filename, map_location))


def explain_error(error: Exception, path: Path) -> CheckpointError:
    """Make the error for a file that cannot be read, from that of PyTorch or safetensors."""
    words = ' '.join(str(error).split()) or type(error).__name__
    sentence = re.split(r'\. | Check the doc', words.rpartition('WeightsUnpickler error: ')[2])[0]
    sentence = sentence[:200].rstrip('.')
    if isinstance(error, pickle.UnpicklingError) and re.search(FORBIDDEN, words):
        imported = re.search(r'GLOBAL (?!was)([\w.]+)', words)
        return CheckpointError(
            f'{path} contains more than weights, and loading it could run code of its author '
            f'({f"it imports {imported[1]}" if imported else sentence}). Ask for plain weights, '
            'or pass --trust-checkpoint if you trust its source.'
        )
    if isinstance(error, (RuntimeError, AssertionError)) and 'CUDA' in words:
        return CheckpointError(
            f"{path} was saved on a GPU that is not available. Load it with map_location='cpu'."
        )
    return CorruptCheckpointError(
        f'{path} is corrupt or truncated ({sentence}). Download or copy it again.'
    )


def read_safetensors(path: Path, map_location: MapLocation) -> dict:
    """Read a ``.safetensors`` file: its tensors as ``state_dict``, its metadata as ``meta``."""
    with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
        state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return dict(state_dict=state_dict, meta=parse_metadata(file.metadata() or {}))


def parse_metadata(texts: dict[str, str]) -> dict[str, Any]:
    """Return the metadata of a file, with ``dataset_meta`` as mmengine stores it, a dict."""
    meta: dict[str, Any] = dict(texts)
    try:
        dataset_meta = json.loads(meta.pop('dataset_meta', ''))
    except ValueError:
        return meta
    return {**meta, 'dataset_meta': dataset_meta} if isinstance(dataset_meta, dict) else meta


def read_pickle(path: Path, map_location: MapLocation) -> object:
    """Read a file of ``torch.save`` with PyTorch's list of safe globals and ours."""
    check_archive(path)
    if trust_checkpoints:
        return torch.load(path, map_location=map_location, weights_only=False)
    if not hasattr(torch.serialization, 'safe_globals'):
        # The list of PyTorch before 2.5 cannot be extended. With this variable set, PyTorch accepts
        # no other pickle module.
        with unset_variable(FORCE_SAFE):
            return torch.load(path, map_location=map_location, pickle_module=SafePickle)
    # safe_globals() removes its additions at the end. Globals that the user has allowed must stay.
    allowed = torch.serialization.get_safe_globals()
    added: list[Any] = [item for item in list_allowed_globals().values() if item not in allowed]
    with unset_variable(FORCE_UNSAFE), torch.serialization.safe_globals(added):
        return torch.load(path, map_location=map_location, weights_only=True)


def check_archive(path: Path) -> None:
    """Verify the checksums in an archive, which ``torch.load`` does not do.

    Files of PyTorch before 1.6 are not archives. A checksum of 0 was not computed, as after
    ``torch.serialization.set_crc32_options(False)``.

    Raises:
        CheckpointError: If it is a TorchScript program, which old PyTorch would run.
        zipfile.BadZipFile: If a checksum differs.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith('/constants.pkl') for name in archive.namelist()):
            raise CheckpointError(
                f'{path} is a TorchScript program, not a checkpoint. Pass the checkpoint that it '
                'was exported from.'
            )
        for record in archive.infolist():
            if record.CRC != 0:
                with archive.open(record) as content:
                    while content.read(2**20):
                        pass


def list_allowed_globals() -> dict[str, Callable]:
    """Map pickled names to what :func:`read_checkpoint` allows in addition to tensors."""
    # Any: __reduce__() may also return a string.
    makers: list[Any] = [value.__reduce__()[0] for value in (np.zeros(0), np.float64(0))]
    # Checkpoints of mmpose have the colors of the keypoints, which are uint8.
    names = ('uint8', 'int32', 'int64', 'float32', 'float64', 'bool')
    dtypes = {type(np.dtype(name)) for name in names}
    classes = (np.ndarray, np.dtype, HistoryBuffer, argparse.Namespace, *dtypes)
    functions = {
        f'numpy.{core}.multiarray.{maker.__name__}': maker
        for maker in makers
        for core in ('core', '_core')
    }
    functions['builtins.getattr'] = get_history_method
    return {
        **{f'{cls.__module__}.{cls.__qualname__}': cls for cls in classes},
        **{name: rename_function(function, name) for name, function in functions.items()},
    }


def rename_function(function: Callable, full_name: str) -> Callable:
    """Wrap a function under another name, since PyTorch 2.5 compares names with pickled ones."""

    def renamed(*args: Any) -> Any:
        return function(*args)

    renamed.__module__, _, renamed.__name__ = full_name.rpartition('.')
    renamed.__qualname__ = renamed.__name__
    return renamed


@contextlib.contextmanager
def unset_variable(name: str) -> Iterator[None]:
    """Unset an environment variable inside the block."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


class SafePickle:
    """A replacement for the module ``pickle`` that only finds weights and allowed globals."""

    class Unpickler(pickle.Unpickler):
        """Unpickler that refuses all other globals."""

        def find_class(self, module: str, name: str) -> Any:
            """Return the object of a name in a pickle."""
            full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
            allowed = {
                **torch._weights_only_unpickler._get_allowed_globals(),  # pyright: ignore
                **list_allowed_globals(),
                '_codecs.encode': codecs.encode,
            }
            if full_name not in allowed:
                raise pickle.UnpicklingError(f'GLOBAL {full_name} is not allowed.')
            return allowed[full_name]

    @classmethod
    def load(cls, file: Any, **options: Any) -> Any:
        """Read one pickle of a file."""
        return cls.Unpickler(file, **options).load()


def get_history_method(owner: type, name: str) -> Callable:
    """Replace ``getattr``, with which pickles name the statistics of a log history."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'Unsupported attribute {name}')
    return getattr(owner, name)
