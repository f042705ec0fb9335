"""Convert a checkpoint between the formats of mmevit, the authors' release and timm."""

import argparse
from collections.abc import Sequence

from mmevit.checkpoint import convert_checkpoint
from mmevit.checkpoint.names import FORMATS
from mmevit.cli.errors import report_errors


@report_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint and print what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('source', metavar='IN', help='.pth or .safetensors of any format')
    parser.add_argument('destination', metavar='OUT', help='.pth or .safetensors to write')
    parser.add_argument('--to', choices=FORMATS, required=True, help='format of OUT')
    args = parser.parse_args(argv)
    meta = convert_checkpoint(args.source, args.destination, args.to)
    print(f'{args.destination}: {args.to} format, arch {meta["arch"]}, from {meta["source"]}.')
