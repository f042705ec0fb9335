"""Run inference on images, videos and directories, and write JSON and pictures."""

from argparse import ArgumentTypeError, Namespace

import torch

from mmevit.apis.inference import infer
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import add_config_arguments, argument, command
from mmevit.cli.command import add_prediction_arguments
from mmevit.utils.configs import read_config
from mmevit.utils.outputs import print_summary


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
    add_prediction_arguments,
    argument('--device', 'device, such as cpu or cuda:0 (default: the best one)', type=device),
    add_config_arguments,
)
def main(args: Namespace) -> None:
    """Validate config, device and checkpoint, then predict."""
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
    print_summary(num_predicted, num_skipped, args.out_dir)
