"""Exit commands with a one-line error message."""

import contextlib
import gc
import io
import pickle
import sys
import traceback
from collections.abc import Iterator
from urllib.error import URLError

from mmevit.utils.errors import UserError, one_line
from mmevit.utils.files import DISK_FULL


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Exit with the message of a :class:`UserError`, and with a traceback for other errors."""
    for stream in (sys.stdout, sys.stderr):
        # Class and file names may have characters that the console does not support.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
        distributed = sys.modules.get('torch.distributed')
        if distributed and distributed.is_available() and distributed.is_initialized():
            # Otherwise one of gloo's threads may abort the process when Python exits. They end with
            # the last reference to the group, which the cycles of runner, hooks and model hold.
            distributed.destroy_process_group()
            gc.collect()
    except UserError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        # From data sets that download themselves.
        sys.exit(
            f'error: A download failed ({error.reason}). Check the connection, or put the files '
            'where the config expects them.'
        )
    except pickle.UnpicklingError as error:
        # From mmengine's loaders for URLs, if PyTorch has refused to unpickle the file.
        reason = ' '.join(str(error).split('\n')[0].split())
        sys.exit(
            f'error: A checkpoint is corrupt or contains more than weights ({reason}). If you '
            'trust its source, use --trust-checkpoint.'
        )
    except Exception as error:
        if getattr(error, 'errno', None) in DISK_FULL:
            sys.exit(f'error: The disk is full ({error}). Free some space and try again.')
        traceback.print_exc()
        sys.exit(f'error: {one_line(error)} (see the traceback above)')
