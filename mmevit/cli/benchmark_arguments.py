"""What the tools that measure speed have in common on their command lines."""

from mmevit.benchmark.measuring import Setting
from mmevit.cli.arguments import SizeAction

MODELS = (
    'efficientvit-m4, a name that mmpretrain knows, timm::NAME, backbone::m4, or a config such as '
    'configs/retinanet_evit_m4.py or mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
)


def add_arguments(parser, models=MODELS):
    """Add the networks and how they are run.

    Args:
        parser (argparse.ArgumentParser): The parser, which is added to.
        models (str): What networks it takes. Defaults to all that the benchmark knows.
    """
    parser.add_argument(
        'models',
        nargs='*',
        metavar='MODEL',
        help=models,
    )
    parser.add_argument('--batch', type=int, default=16, help='images at a time; 1 for latency')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')
    parser.add_argument('--size', action=SizeAction, help='image size')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--rounds', type=int, default=20, help='turns that each one gets')
    parser.add_argument('--seed', type=int, default=0)


def make_setting(args, **others):
    """Collect how networks are run.

    Args:
        args (argparse.Namespace): The parsed command line.
        **others: Arguments of :class:`Setting` that are not on all command lines.

    Returns:
        Setting: How to run them.
    """
    return Setting(
        batch_size=args.batch,
        threads=args.threads,
        size=args.size,
        device=args.device,
        rounds=args.rounds,
        seed=args.seed,
        # The process is the tool's own.
        **{'keep_memory': True, **others},
    )
