"""Convert a checkpoint between the formats of mmevit, the authors' release and timm."""

from argparse import Namespace

from mmevit.checkpoint import convert_checkpoint
from mmevit.checkpoint.names import FORMATS
from mmevit.cli.arguments import argument, command


@command(
    argument('source', '.pth or .safetensors of any format', metavar='IN'),
    argument('destination', '.pth or .safetensors to write', metavar='OUT'),
    argument('--to', 'format of OUT', choices=FORMATS, required=True),
)
def main(args: Namespace) -> None:
    """Convert a checkpoint and print what was written."""
    meta = convert_checkpoint(args.source, args.destination, args.to)
    print(f'{args.destination}: {args.to} format, arch {meta["arch"]}, from {meta["source"]}.')
