"""Generate data for detection, segmentation and classification."""

import argparse
import signal
import sys
from collections.abc import Sequence

from mmevit.datasets import prepare_digits


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data, or exit with a message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('root', nargs='?', default='data/digits', help='output folder')
    add('--num-train', type=int, default=600, help='number of training scenes')
    add('--num-val', type=int, default=160, help='number of validation scenes')
    add('--image-size', type=int, default=192, help='height and width of a scene in pixels')
    add('--seed', type=int, default=0, help='seed of the split and the scenes')
    add('--force', action='store_true', help='replace existing digits')
    args = parser.parse_args(argv)
    # Clean up as Ctrl-C does.
    terminated = 'error: Terminated; nothing was written.'
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(terminated))
    try:
        prepare_digits(**vars(args))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('error: Interrupted; nothing was written.')
    finally:
        signal.signal(signal.SIGTERM, handler)
    print(f'The digits are in {args.root}.')
