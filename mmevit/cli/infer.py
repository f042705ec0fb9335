"""Run inference on images, videos and directories, and write JSON and pictures."""

from argparse import ArgumentError, ArgumentTypeError, Namespace

import torch

from mmevit.apis.inference import infer
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import add_config_arguments, argument, command, flag
from mmevit.utils.configs import read_config
from mmevit.utils.errors import ConfigError


def device(name: str) -> str:
    """Check that a device is available."""
    try:
        torch.empty(0, device=name)
    # An AssertionError or a RuntimeError.
    except Exception as error:
        raise ArgumentTypeError(f'device {name} is not available') from error
    return name


@command(
    argument('config', 'config file, or a name such as mmevit::efficientvit/retinanet_evit_m4.py'),
    argument('checkpoint', 'checkpoint file, evit://NAME or hf://OWNER/REPO'),
    argument('inputs', 'images, videos or directories', nargs='+'),
    argument('--out-dir', 'directory for vis/ and preds/ (default: outputs)', default='outputs'),
    argument('--batch-size', 'batch size (default: 1)', type=int, default=1),
    argument('--pred-score-thr', 'minimum score to draw (default: 0.3)', type=float, default=0.3),
    argument('--device', 'device, such as cpu or cuda:0 (default: the best one)', type=device),
    flag('--no-save-vis', 'do not write pictures'),
    add_config_arguments,
)
def main(args: Namespace) -> None:
    """Validate config, device and checkpoint, then predict."""
    if args.batch_size < 1:
        raise ArgumentError(None, f'--batch-size {args.batch_size} must be at least 1.')
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
