"""Arguments that the commands that measure speed share."""

import argparse
from typing import Any

from mmevit.benchmark import Setting
from mmevit.cli.arguments import SizeAction

MODELS = (
    'efficientvit-m4, a model name of mmpretrain, timm::NAME, backbone::m4, or a config such as '
    'configs/retinanet_evit_m4.py or mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
)


def add_arguments(parser: argparse.ArgumentParser, models: str = MODELS) -> None:
    """Add the networks, described by ``models``, and the setting."""
    parser.add_argument('models', nargs='*', metavar='MODEL', help=models)
    parser.add_argument('--batch', type=int, default=16, help='batch size; 1 measures latency')
    parser.add_argument('--threads', type=int, default=1, help='number of CPU threads')
    parser.add_argument('--size', action=SizeAction, help='image size')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--rounds', type=int, default=20, help='number of measurements of each')
    parser.add_argument('--seed', type=int, default=0)


def make_setting(args: argparse.Namespace, **others: Any) -> Setting:
    """Make the setting of parsed arguments and others that not all commands have."""
    return Setting(
        batch_size=args.batch,
        threads=args.threads,
        size=args.size,
        device=args.device,
        rounds=args.rounds,
        seed=args.seed,
        # Changing the allocator of the process is fine in a command.
        **{'keep_memory': True, **others},
    )
