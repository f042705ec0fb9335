"""Show which channels of attention and FFNs matter, and take out the others (Figure 5)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from rich.progress import track

from mmevit.analysis import channel_importance, count_params, plot_kept, prune, shares_kept
from mmevit.benchmark.measuring import count_macs
from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import (
    add_output_arguments,
    check_outputs,
    common_parser,
    load_config,
    write_outputs,
)
from mmevit.cli.errors import one_sentence_errors
from mmevit.datasets.sampling import sample_images
from mmevit.deploy import TARGETS, export, try_to_fold
from mmevit.deploy.networks import make_exportable
from mmevit.engine.runner import build_runner
from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import check_ending
from mmevit.utils.tables import format_table


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument('config', help='config file of a classifier')
    parser.add_argument('checkpoint', help='checkpoint file')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--params', type=float, default=0.8, help='share of the parameters to keep')
    budget.add_argument('--macs', type=float, help='share of the multiply-accumulates instead')
    parser.add_argument('--images', type=int, default=200, help='training images to look at')
    parser.add_argument(
        '--random',
        type=int,
        default=3,
        help='networks to compare with that lose channels by chance',
    )
    parser.add_argument('--export', metavar='FILE', help='write the pruned network, such as p.onnx')
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 < (args.macs or args.params) <= 1:
        parser.error('--params and --macs are shares, from 0 to 1.')
    return args


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Compute the importance, prune, evaluate, and write what was asked for."""
    args = parse_args(argv)
    check_outputs(args)
    if args.export:
        check_ending(args.export, TARGETS.values())
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    splits = ('train', 'test')
    needs = ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'test_cfg')
    cfg = load_config(args, splits, needs)
    if cfg.get('default_scope') != 'mmpretrain' or type_name(cfg.model).startswith('Distilled'):
        raise ConfigError(f'{args.config} has no plain classifier of mmpretrain.')
    cfg.load_from, cfg.custom_hooks = args.checkpoint, [dict(type='StrictLoadHook')]
    check_checkpoint(args.checkpoint)
    check_config(cfg, splits)
    runner = build_runner(Config(cfg.to_dict()))
    whole = runner.test()  # this loads the checkpoint, too
    if 'accuracy/top1' not in whole:
        raise ConfigError(f'test_evaluator of {args.config} gives no top-1 accuracy.')
    model = runner.model
    model.eval()
    images = list(sample_images(cfg, model, 'train', args.images))
    importance = channel_importance(model, track(images, 'Gradients', transient=True), loss)

    cost, share = (count_params, args.params) if args.macs is None else (macs_of(images), args.macs)
    budget = round(share * cost(model))
    pruned, kept = prune(model, importance, budget, cost)
    scores = [score('whole', model, whole), score('by importance', pruned, retest(runner, pruned))]
    for seed in range(args.random):
        by_chance, _ = prune(model, shuffle(importance, seed), budget, cost)
        scores.append(score(f'by chance, {seed}', by_chance, retest(runner, by_chance)))

    rows = shares_kept(importance, kept)
    print(f'\n{format_table(rows, COLUMNS)}\n\n{format_table(scores, SCORES)}')
    note = f'{args.config}: {cost(pruned)} of {cost(model)}, {len(images)} images.'
    write_outputs(args, rows, COLUMNS, note, lambda: plot_kept(rows))
    if args.export:
        target = {suffix: target for target, suffix in TARGETS.items()}[Path(args.export).suffix]
        example = torch.cat([images[0]['inputs']] * 2).cpu()
        export(make_exportable(try_to_fold(pruned.cpu())), example, args.export, target)


def loss(model, batch):
    """Compute the loss of a classifier for an image."""
    losses = model.loss(batch['inputs'], batch['data_samples'])
    return model.parse_losses(losses)[0]


def macs_of(images):
    """Make what counts the multiply-accumulates of a network."""

    @torch.no_grad()
    def cost(model):
        return count_macs(model, images[0]['inputs'])

    return cost


def retest(runner, model):
    """Evaluate another model in the loop of a runner."""
    runner.model = model
    return runner.test_loop.run()


def score(name, model, metrics):
    """Tell what a model costs, and how well it does."""
    return dict(network=name, params=count_params(model) / 1e6, top1=metrics['accuracy/top1'])


def shuffle(importance, seed):
    """Give channels an importance by chance."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            kind: torch.rand(values.shape, generator=generator) for kind, values in kinds.items()
        }
        for name, kinds in importance.items()
    }


COLUMNS = dict(
    part=('part', '{}'),
    kind=('channels', '{}'),
    channels=('of a head', '{}'),
    kept=('kept', '{}'),
    share=('share', '{:.0%}'),
)
SCORES = dict(network=('pruned', '{}'), params=('params M', '{:.3f}'), top1=('top-1', '{:.2f}'))
