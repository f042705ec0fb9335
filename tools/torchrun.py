"""Run torchrun, with a one-line error if a process fails."""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            sys.exit(f'error: process {rank} was killed by {failure.signal_name()}.')
        sys.exit(f'error: process {rank} failed with exit code {failure.exitcode} (see above).')
