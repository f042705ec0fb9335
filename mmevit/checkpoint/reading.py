"""Read checkpoint files without ever running code that is in them."""

import codecs
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import SafetensorError, safe_open

from mmevit.errors import CheckpointError, TornCheckpointError

# What PyTorch says where a file asks for more than weights, rather than being torn.
FORBIDDEN = r'GLOBAL|Unsupported (class|attribute)|unrecognized function|Can only'


def read_checkpoint(path, map_location='cpu'):
    """Read a ``.pth`` or ``.safetensors`` file.

    Besides tensors and plain values only what mmengine puts beside them, histories of the log,
    is let through.

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
        raise TornCheckpointError(f'The checkpoint {path} is empty: download or copy it again.')
    read = read_safetensors if path.suffix == '.safetensors' else read_pickle
    content = read(path, map_location)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, which is no checkpoint.')
    return content


def forbid_code_in_checkpoints(trust=False):
    """Have every checkpoint of this process read safely, whatever loads it.

    Args:
        trust (bool): Whether to do the opposite, and let PyTorch unpickle anything. Defaults to
            False.
    """
    if trust:
        os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'
        return
    # Where weights_only=True fails, mmengine tries without: PyTorch itself then insists on it.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'

    # mmengine logs what stands behind `load_from_` in the name.
    @CheckpointLoader.register_scheme(prefixes='', force=True)
    def load_from_local(filename, map_location=None):
        return read_checkpoint(filename, map_location)


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
        check_sums(path)
        if os.environ.get('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD') == '1':
            return torch.load(path, map_location=map_location, weights_only=False)
        if not hasattr(torch.serialization, 'safe_globals'):
            return load_by_old_pytorch(path, map_location)
        with torch.serialization.safe_globals([(v, name) for name, v in known_globals().items()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if not re.search(FORBIDDEN, str(error)):
            raise damaged(path, error) from error
        raise CheckpointError(
            f'{path} holds more than weights, and loading it could run code of its author '
            f'({forbidden_name(error)}): ask for plain weights, or give the tools '
            '--trust-checkpoint if you know where it comes from.'
        ) from error
    # What a reader raises at hostile bytes depends on where they are.
    except Exception as error:
        raise damaged(path, error) from error


def check_sums(path):
    """Compare the check sums in an archive, which ``torch.load`` does not.

    Args:
        path (Path): The file; one of before PyTorch 1.6 is no archive and has none.

    Raises:
        zipfile.BadZipFile: If one differs.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        if bad:
            raise zipfile.BadZipFile(f'the check sum of {bad} differs')


def known_globals():
    """List what mmengine's checkpoints hold besides weights: numbers, and histories of the log.

    Returns:
        dict[str, object]: What each name in a pickle stands for.
    """
    makers = [value.__reduce__()[0] for value in (np.zeros(0), np.float64(0))]
    dtypes = {type(np.dtype(name)) for name in ('int32', 'int64', 'float32', 'float64', 'bool')}
    classes = (np.ndarray, np.dtype, HistoryBuffer, *dtypes)
    return {
        **{f'{known.__module__}.{known.__qualname__}': known for known in classes},
        **{
            f'numpy.{core}.multiarray.{maker.__name__}': maker
            for maker in makers
            for core in ('core', '_core')
        },
        'builtins.getattr': history_method,
    }


def load_by_old_pytorch(path, map_location):
    """Load by PyTorch before 2.5, to whose own list of what is safe nothing can be added.

    Args:
        path (Path): The file.
        map_location (str): Device to load the tensors to.

    Returns:
        object: Its content.

    Raises:
        pickle.UnpicklingError: If it holds anything but weights and what is known.
    """
    # PyTorch takes no other pickle where it is told to be safe itself.
    forced = os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
    try:
        return torch.load(path, map_location=map_location, pickle_module=KnownPickle)
    finally:
        if forced is not None:
            os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = forced


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
        TornCheckpointError: The error.
    """
    return TornCheckpointError(
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
