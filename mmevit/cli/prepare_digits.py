"""Generate data for detection, segmentation and classification."""

import argparse
import signal
import sys
from collections.abc import Sequence

from mmevit.datasets import prepare_digits


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', nargs='?', default='data/digits', help='output folder')
    parser.add_argument('--num-train', type=int, default=600, help='number of training scenes')
    parser.add_argument('--num-val', type=int, default=160, help='number of validation scenes')
    parser.add_argument(
        '--image-size', type=int, default=192, help='height and width of a scene in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the split and the scenes')
    parser.add_argument('--force', action='store_true', help='replace existing digits')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, or exit with a message."""
    args = parse_args(argv)
    # Clean up as Ctrl-C does.
    handler = signal.signal(signal.SIGTERM, exit_terminated)
    try:
        prepare_digits(**vars(args))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('error: Interrupted; nothing was written.')
    finally:
        signal.signal(signal.SIGTERM, handler)
    print(f'The digits are in {args.root}.')


def exit_terminated(*_: object) -> None:
    """Exit on a signal."""
    sys.exit('error: Terminated; nothing was written.')
