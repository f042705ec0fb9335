"""Arguments that the commands that measure speed share."""

from argparse import Namespace
from typing import Any

from mmevit.benchmark import Setting
from mmevit.cli.arguments import SizeAction
from mmevit.cli.command import Adder, argument, group

MODELS = (
    'efficientvit-m4, a model name of mmpretrain, timm::NAME, backbone::m4, or a config such as '
    'configs/retinanet_evit_m4.py or mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
)


def benchmark_arguments(models: str = MODELS, rounds: int = 20) -> Adder:
    """Declare the networks, described by ``models``, and the setting."""
    return group(
        argument('models', models, nargs='*', metavar='MODEL'),
        argument('--batch', 'batch size; 1 measures latency', type=int, default=16),
        argument('--threads', 'number of CPU threads', type=int, default=1),
        argument('--size', 'image size', action=SizeAction),
        argument('--device', choices=['cpu', 'cuda'], default='cpu'),
        argument('--rounds', 'number of measurements of each', type=int, default=rounds),
        argument('--seed', type=int, default=0),
    )


def make_setting(args: Namespace, **others: Any) -> Setting:
    """Make the setting of parsed arguments and others that not all commands have."""
    return Setting(
        batch_size=args.batch,
        threads=args.threads,
        size=args.size,
        device=args.device,
        rounds=args.rounds,
        seed=args.seed,
        **others,
    )
