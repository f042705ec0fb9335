"""Predict what is in images, folders and videos: JSON and pictures, from any config here."""

import argparse

import torch

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checks import check_config
from mmevit.engine.inference import infer
from mmevit.engine.launch import (
    add_config_arguments,
    check_checkpoint,
    one_sentence_errors,
    read_config,
)
from mmevit.errors import ConfigError


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config', help='config file, or a name such as mmevit::efficientvit/retinanet_evit_m4.py'
    )
    parser.add_argument('checkpoint', help='checkpoint file, or evit://NAME')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, or folder')
    parser.add_argument('--out-dir', default='outputs', help='folder to write vis/ and preds/ to')
    parser.add_argument('--batch-size', type=int, default=1, help='images at once, 1 unless given')
    parser.add_argument(
        '--pred-score-thr', type=float, default=0.3, help='score from which on a box is drawn, 0.3'
    )
    parser.add_argument('--device', type=device, help='such as cpu or cuda:0')
    parser.add_argument('--no-save-vis', action='store_true', help='make no pictures')
    add_config_arguments(parser)
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size} must be at least 1.')
    return args


def device(name):
    """Check that PyTorch has a device."""
    try:
        torch.empty(0, device=name)
    # Depending on what is wrong, an AssertionError or a RuntimeError.
    except Exception as error:
        raise argparse.ArgumentTypeError(f'PyTorch has no device {name}') from error
    return name


def main():
    """Check everything that can be checked first, then predict."""
    args = parse_args()
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    cfg = read_config(args.config, args.cfg_options)
    if cfg.get('model') is None:
        raise ConfigError(f'{args.config} is no whole config: it has no model.')
    check_config(cfg, splits=())
    check_checkpoint(args.checkpoint)
    num_predicted, num_left_out = infer(
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
        raise ConfigError('None of the files can be read: nothing was written.')
    left_out = f'; {num_left_out} files could not be read' if num_left_out else ''
    print(f'Predictions of {num_predicted} images: {args.out_dir}{left_out}')


if __name__ == '__main__':
    with one_sentence_errors():
        main()
