"""Compute the importance of channels in attention and FFNs, and prune a classifier (Figure 5)."""

from argparse import ArgumentError, Namespace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from mmevit.analysis import channel_importance, count_params, plot_kept, prune, shares_kept
from mmevit.analysis.importance import TensorsByKind
from mmevit.benchmark.measuring import count_macs
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.cli.arguments import (
    add_output_arguments,
    add_run_arguments,
    argument,
    command,
    ends_in,
    exclusive,
    load_config,
    positive_int,
    write_outputs,
)
from mmevit.datasets.sampling import sample_images
from mmevit.deploy import export, try_to_fold
from mmevit.deploy.exporting import TARGETS_BY_SUFFIX
from mmevit.deploy.networks import make_exportable
from mmevit.engine.runner import build_runner
from mmevit.utils.configs import type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.progress import show_progress
from mmevit.utils.tables import format_table

COLUMNS = dict(
    part=('part', '{}'),
    kind=('channels', '{}'),
    channels=('per head', '{}'),
    kept=('kept', '{}'),
    share=('share', '{:.0%}'),
)
SCORES = dict(network=('pruned', '{}'), params=('params M', '{:.3f}'), top1=('top-1', '{:.2f}'))


@command(
    add_run_arguments,
    argument('config', 'config file of a classifier'),
    argument('checkpoint', 'checkpoint file'),
    exclusive(
        argument('--params', 'share of the parameters to keep', type=float, default=0.8),
        argument('--macs', 'share of the MACs to keep instead', type=float),
    ),
    argument('--images', 'number of training images', type=positive_int, default=200),
    argument('--random', 'number of randomly pruned networks to compare with', type=int, default=3),
    argument(
        '--export',
        'export the pruned network, for example to p.onnx',
        type=ends_in(*TARGETS_BY_SUFFIX),
        metavar='FILE',
    ),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Prune and evaluate, and print, write, plot and export the results."""
    if not 0 < (args.macs or args.params) <= 1:
        raise ArgumentError(None, '--params and --macs must be above 0 and at most 1.')
    splits = ('train', 'test')
    needs = ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator', 'test_cfg')
    cfg = load_config(args, splits, needs)
    if cfg.get('default_scope') != 'mmpretrain' or type_name(cfg.model).startswith('Distilled'):
        raise ConfigError(
            f'{args.config} is not an mmpretrain classifier without distillation. '
            'Pass a config such as evit_m0_in1k.py.'
        )
    cfg.load_from, cfg.custom_hooks = args.checkpoint, [dict(type='StrictLoadHook')]
    check_checkpoint(args.checkpoint)
    check_config(cfg, splits)
    runner = build_runner(Config(cfg.to_dict()))
    metrics = runner.test()  # also loads the checkpoint
    if 'accuracy/top1' not in metrics:
        raise ConfigError(
            f'test_evaluator of {args.config} does not compute accuracy/top1. '
            "Add dict(type='Accuracy')."
        )
    model = runner.model
    model.eval()
    images = list(sample_images(cfg, model, 'train', args.images))
    importance = channel_importance(model, show_progress(images, 'Gradients'), loss)

    cost, share = count_params, args.params
    if args.macs is not None:
        cost, share = partial(count_macs, images=images[0]['inputs']), args.macs
    budget = round(share * cost(model))
    pruned, kept = prune(model, importance, budget, cost)
    scores = [score('original', model, metrics)]
    scores.append(score('by importance', pruned, evaluate(runner, pruned)))
    for seed in range(args.random):
        randomly, _ = prune(model, randomize(importance, seed), budget, cost)
        scores.append(score(f'random, seed {seed}', randomly, evaluate(runner, randomly)))

    rows = shares_kept(importance, kept)
    print(f'\n{format_table(rows, COLUMNS)}\n\n{format_table(scores, SCORES)}')
    note = f'{args.config}: {cost(pruned)} of {cost(model)}, {len(images)} images.'
    write_outputs(args, rows, COLUMNS, note, lambda: plot_kept(rows))
    if args.export:
        target = TARGETS_BY_SUFFIX[Path(args.export).suffix]
        network = make_exportable(try_to_fold(pruned.cpu()))
        export(network, images[0]['inputs'].cpu(), args.export, target)


def loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Compute the loss of a classifier on a batch."""
    losses = model.loss(batch['inputs'], batch['data_samples'])
    return model.parse_losses(losses)[0]


def evaluate(runner: Runner, model: nn.Module) -> dict[str, float]:
    """Evaluate another model in the test loop of a runner."""
    runner.model = model
    return cast(BaseLoop, runner.test_loop).run()


def score(name: str, model: nn.Module, metrics: dict[str, float]) -> dict[str, Any]:
    """Make the row of a model in the table of accuracies."""
    return dict(network=name, params=count_params(model) / 1e6, top1=metrics['accuracy/top1'])


def randomize(importance: TensorsByKind, seed: int) -> TensorsByKind:
    """Replace importance by random values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            kind: torch.rand(values.shape, generator=generator) for kind, values in kinds.items()
        }
        for name, kinds in importance.items()
    }
