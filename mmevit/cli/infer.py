"""Run inference on images, videos and directories, and write JSON and pictures."""

import argparse
from collections.abc import Sequence

import torch

from mmevit.apis.inference import infer
from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import add_config_arguments
from mmevit.cli.errors import report_errors
from mmevit.utils.configs import read_config
from mmevit.utils.errors import ConfigError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or a name such as mmevit::efficientvit/retinanet_evit_m4.py'
    )
    parser.add_argument('checkpoint', help='checkpoint file, or evit://NAME')
    parser.add_argument('inputs', nargs='+', help='images, videos or directories')
    parser.add_argument(
        '--out-dir', default='outputs', help='directory for vis/ and preds/ (default: outputs)'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='batch size (default: 1)')
    parser.add_argument(
        '--pred-score-thr', type=float, default=0.3, help='minimum score to draw (default: 0.3)'
    )
    parser.add_argument(
        '--device', type=device, help='device, such as cpu or cuda:0 (default: the best one)'
    )
    parser.add_argument('--no-save-vis', action='store_true', help='do not write pictures')
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size} must be at least 1.')
    return args


def device(name: str) -> str:
    """Check that a device is available."""
    try:
        torch.empty(0, device=name)
    # An AssertionError or a RuntimeError.
    except Exception as error:
        raise argparse.ArgumentTypeError(f'device {name} is not available') from error
    return name


@report_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Validate config, device and checkpoint, then predict."""
    args = parse_args(argv)
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    cfg = read_config(args.config, args.cfg_options, needs=['model'])
    check_config(cfg, splits=())
    check_checkpoint(args.checkpoint)
    num_predicted, num_skipped = infer(
        cfg,
        args.checkpoint,
        args.inputs,
        args.out_dir,
        batch_size=args.batch_size,
        score_thr=args.pred_score_thr,
        device=args.device,
        draw=not args.no_save_vis,
    )
    if not num_predicted:
        raise ConfigError('None of the files can be read. See the warnings above.')
    skipped = f' ({num_skipped} files could not be read)' if num_skipped else ''
    print(f'Predictions of {num_predicted} images are in {args.out_dir}{skipped}.')
