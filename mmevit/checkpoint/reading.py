"""Read checkpoint files without ever running code that is in them."""

import argparse
import codecs
import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open

from mmevit.utils.errors import CheckpointError, CorruptCheckpointError

from .matching import require_fit

# What PyTorch says where a file asks for more than weights, rather than being torn.
FORBIDDEN = r'GLOBAL|Unsupported (class|attribute)|unrecognized function|Can only'
# PyTorch's variables, which override what a caller of torch.load() asks for.
FORCE_SAFE, FORCE_UNSAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# Whether code in checkpoints may run. Set by forbid_code_in_checkpoints(trust=True) only.
trust_checkpoints = False


def read_checkpoint(path, map_location='cpu'):
    """Read a ``.pth`` or ``.safetensors`` file.

    In addition to tensors and plain values, only the log histories of mmengine and the command line
    of the authors' training script (``argparse.Namespace``) are allowed.

    Args:
        path (str | Path): The file.
        map_location (str): Device to load the tensors to. Defaults to ``'cpu'``.

    Returns:
        dict: Its content.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, or is no checkpoint, or holds
            objects that could run code.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(dict(bias=torch.ones(2)), folder + '/a.pth')
        ...     read_checkpoint(folder + '/a.pth')
        {'bias': tensor([1., 1.])}
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'The checkpoint {path} is missing, or is no file.')
    if path.stat().st_size == 0:
        raise CorruptCheckpointError(f'The checkpoint {path} is empty: download or copy it again.')
    read = read_safetensors if path.suffix == '.safetensors' else read_pickle
    content = read(path, map_location)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, which is no checkpoint.')
    return content


def forbid_code_in_checkpoints(trust: bool = False) -> None:
    """Have every checkpoint of this process read safely, whatever loads it.

    Sets PyTorch's variables for loaders other than ours; ours does not read them.

    Args:
        trust: Whether to do the opposite, and let checkpoints run code.
    """
    global trust_checkpoints
    trust_checkpoints = trust
    # Where weights_only=True fails, mmengine tries without: PyTorch itself then insists on it.
    forced, other = (FORCE_UNSAFE, FORCE_SAFE) if trust else (FORCE_SAFE, FORCE_UNSAFE)
    os.environ[forced] = '1'
    # With both set, torch.load() refuses every file.
    os.environ.pop(other, None)
    if trust:
        return

    # mmengine logs what stands behind `load_from_` in the name.
    @CheckpointLoader.register_scheme(prefixes='', force=True)
    def load_from_local(filename, map_location=None):
        return require_fit(read_checkpoint(filename, map_location))


def read_safetensors(path, map_location):
    """Read a ``.safetensors`` file.

    Args:
        path (Path): The file.
        map_location (str): Device to load the tensors to.

    Returns:
        dict: ``state_dict``, and as ``meta`` the metadata of the file.

    Raises:
        CheckpointError: If it is damaged.
    """
    try:
        with safe_open(path, framework='pt', device=str(map_location or 'cpu')) as file:
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return dict(state_dict=state_dict, meta=dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def read_pickle(path, map_location):
    """Read what ``torch.save`` wrote.

    Args:
        path (Path): The file.
        map_location (str): Device to load the tensors to.

    Returns:
        object: Its content.

    Raises:
        CheckpointError: If it is damaged, or holds objects that could run code.
    """
    try:
        check_archive(path)
        if trust_checkpoints:
            return torch.load(path, map_location=map_location, weights_only=False)
        if not hasattr(torch.serialization, 'safe_globals'):
            return load_by_old_pytorch(path, map_location)
        return load_weights_only(path, map_location)
    except pickle.UnpicklingError as error:
        if not re.search(FORBIDDEN, str(error)):
            raise damaged(path, error) from error
        raise CheckpointError(
            f'{path} holds more than weights, and loading it could run code of its author '
            f'({forbidden_name(error)}): ask for plain weights, or give the tools '
            '--trust-checkpoint if you know where it comes from.'
        ) from error
    except (CheckpointError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if 'CUDA' not in str(error):
            raise damaged(path, error) from error
        raise CheckpointError(
            f"{path} was saved on a GPU that is not here. Load it with map_location='cpu'."
        ) from error
    # What a reader raises at hostile bytes depends on where they are.
    except Exception as error:
        raise damaged(path, error) from error


def check_archive(path: Path) -> None:
    """Compare the checksums in an archive, which ``torch.load`` does not.

    A file of PyTorch before 1.6 is not an archive. A checksum of 0 is one that was not computed, as
    after ``torch.serialization.set_crc32_options(False)``.

    Raises:
        CheckpointError: If it is a TorchScript program, which old PyTorch would start.
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


def known_globals() -> dict[str, Callable]:
    """Map names in pickles to what they stand for, for all that checkpoints hold besides tensors.

    These are mmengine's numbers and log histories, and the command line that the authors' training
    script saves as ``args``.
    """
    makers = [value.__reduce__()[0] for value in (np.zeros(0), np.float64(0))]
    dtypes = {type(np.dtype(name)) for name in ('int32', 'int64', 'float32', 'float64', 'bool')}
    classes = (np.ndarray, np.dtype, HistoryBuffer, argparse.Namespace, *dtypes)
    functions = {
        f'numpy.{core}.multiarray.{maker.__name__}': maker
        for maker in makers
        for core in ('core', '_core')
    }
    functions['builtins.getattr'] = history_method
    return {
        **{f'{known.__module__}.{known.__qualname__}': known for known in classes},
        **{name: rename(function, name) for name, function in functions.items()},
    }


def rename(function: Callable, full_name: str) -> Callable:
    """Wrap a function under another name, since PyTorch 2.5 allows only what has its own name."""

    def renamed(*args):
        return function(*args)

    renamed.__module__, _, renamed.__name__ = full_name.rpartition('.')
    renamed.__qualname__ = renamed.__name__
    return renamed


def load_weights_only(path: Path, map_location) -> object:
    """Load by PyTorch's own list of what is safe, and what is known.

    Raises:
        pickle.UnpicklingError: If the file holds anything else.
    """
    # What is allowed already must stay allowed afterwards.
    allowed = torch.serialization.get_safe_globals()
    added = [known for known in known_globals().values() if known not in allowed]
    with unset_variable(FORCE_UNSAFE), torch.serialization.safe_globals(added):
        return torch.load(path, map_location=map_location, weights_only=True)


def load_by_old_pytorch(path: Path, map_location) -> object:
    """Load by PyTorch before 2.5, to whose own list of what is safe nothing can be added.

    Raises:
        pickle.UnpicklingError: If the file holds anything but weights and what is known.
    """
    # PyTorch takes no other pickle where it is told to be safe itself.
    with unset_variable(FORCE_SAFE):
        return torch.load(path, map_location=map_location, pickle_module=KnownPickle)


@contextlib.contextmanager
def unset_variable(name: str) -> Iterator[None]:
    """Unset an environment variable for the length of a block."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


class KnownPickle:
    """Stands in for the module ``pickle``, and knows no names but those of weights and ours."""

    class Unpickler(pickle.Unpickler):
        """Reads pickles, and refuses what is not known."""

        def find_class(self, module, name):
            """Find what a name in a pickle stands for."""
            full_name = f'{module.replace("__builtin__", "builtins")}.{name}'
            known = {
                **torch._weights_only_unpickler._get_allowed_globals(),
                **known_globals(),
                '_codecs.encode': codecs.encode,
            }
            if full_name not in known:
                raise pickle.UnpicklingError(f'GLOBAL {full_name} is not known.')
            return known[full_name]

    @classmethod
    def load(cls, file, **options):
        """Read one pickle of a file."""
        return cls.Unpickler(file, **options).load()


def history_method(owner, name):
    """Stand in for ``getattr``, by which pickles name the statistics of a history.

    Args:
        owner (type): Class that the attribute is asked of.
        name (str): Name of the attribute.

    Returns:
        Callable: The method.

    Raises:
        pickle.UnpicklingError: If it is anything else.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'Unsupported attribute {name}')
    return getattr(owner, name)


def damaged(path, error):
    """Make the error of a file that cannot be read to its end.

    Args:
        path (Path): The file.
        error (Exception): What its reader raised.

    Returns:
        CorruptCheckpointError: The error.
    """
    return CorruptCheckpointError(
        f'{path} is no whole checkpoint ({first_sentence(error)}): download or copy it again.'
    )


def first_sentence(error):
    """Shorten an error to the first sentence of its message, on one line."""
    words = ' '.join(str(error).split()) or type(error).__name__
    words = words.rpartition('WeightsUnpickler error: ')[2]
    return re.split(r'\. | Check the doc', words)[0][:200].rstrip('.')


def forbidden_name(error):
    """Find what a file asks for in the error that refuses it.

    Args:
        error (pickle.UnpicklingError): What PyTorch raised.

    Returns:
        str: The name of a function or a class, or else the error's first sentence.
    """
    match = re.search(r'GLOBAL (?!was)([\w.]+)', ' '.join(str(error).split()))
    return f'it asks for {match[1]}' if match else first_sentence(error)
