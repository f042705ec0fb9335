"""End commands with one sentence for a user's mistake."""

import contextlib
import io
import pickle
import sys
import traceback
from urllib.error import URLError

from mmevit.utils.errors import UserError, one_line
from mmevit.utils.files import DISK_FULL


@contextlib.contextmanager
def one_sentence_errors():
    """End the program with the sentence of a :class:`UserError` rather than with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Names of classes and files may have characters that the console does not have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    try:
        yield
    except UserError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        # From data sets that download themselves.
        sys.exit(
            f'error: A download failed ({error.reason}): put the files where the config expects '
            'them by hand, or try again with a connection.'
        )
    except pickle.UnpicklingError as error:
        # From a loader of mmengine's for URLs, which PyTorch has kept from unpickling.
        reason = ' '.join(str(error).split('\n')[0].split())
        sys.exit(
            f'error: A checkpoint holds more than weights, or is damaged ({reason}): '
            'give --trust-checkpoint if you know where it comes from.'
        )
    # From what is not ours, such as modules of the user's own: where it was is for those who ask.
    except Exception as error:
        if getattr(error, 'errno', None) in DISK_FULL:
            sys.exit(f'error: Nothing more can be written ({error}): make room, and try again.')
        traceback.print_exc()
        sys.exit(f'error: {one_line(error)} (see the traceback above)')
