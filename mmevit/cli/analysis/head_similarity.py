"""Measure the similarity of attention heads on a data set (Figure 4)."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from mmevit.analysis import head_similarity, plot_similarity
from mmevit.benchmark import Setting
from mmevit.benchmark.measuring import check_setting
from mmevit.benchmark.models import FlatOutputs, build
from mmevit.checkpoint.loader import check_checkpoint, load_into
from mmevit.checks.data import check_data
from mmevit.cli.arguments import (
    add_output_arguments,
    argument,
    command,
    flag,
    positive_int,
    write_outputs,
)
from mmevit.datasets.sampling import sample_images
from mmevit.utils.configs import build_model, read_config
from mmevit.utils.progress import show_progress
from mmevit.utils.tables import format_table

COLUMNS = dict(
    model=('model', '{}'), block=('block', '{}'), mean=('mean', '{:.3f}'), heads=('heads', '{}')
)


@command(
    argument('data', 'config whose test images are used', metavar='CONFIG'),
    argument(
        'models',
        'a config, a name of mmpretrain or timm::NAME (see tools/benchmark.py), and its weights '
        '(default: random)',
        nargs='+',
        metavar='MODEL=CHECKPOINT',
    ),
    argument('--images', 'maximum number of images', type=positive_int, default=1000),
    argument('--device', choices=['cpu', 'cuda'], default='cpu'),
    flag('--trust-checkpoint', 'see tools/test.py'),
    add_output_arguments,
)
def main(args: Namespace) -> None:
    """Compare heads, and print, write and plot the table."""
    names = [text.partition('=')[::2] for text in args.models]
    for _, checkpoint in names:
        check_checkpoint(checkpoint)
    check_setting(Setting(device=args.device))
    cfg = read_config(args.data, None, needs=['test_dataloader', 'model'])
    check_data(cfg, 'test')
    images = torch.cat(
        [batch['inputs'] for batch in sample_images(cfg, build_model(cfg), 'test', args.images)]
    )
    batches = images.to(args.device).split(32)
    similarities = {}
    for name, checkpoint in names:
        network = FlatOutputs(build(name)).eval().to(args.device)
        if checkpoint:
            load_into(network.model, checkpoint)
        label = Path(name).stem if name.endswith('.py') else name
        if label in similarities:
            label = f'{name}={checkpoint}'
        similarities[label] = head_similarity(network, show_progress(batches, label))
    rows: list[dict[str, Any]] = [
        dict(
            model=name,
            block=block.removeprefix('model.'),
            mean=heads.mean().item(),
            heads=' '.join(f'{value:.2f}' for value in heads.tolist()),
        )
        for name, blocks in similarities.items()
        for block, heads in blocks.items()
    ]
    note = f'Largest cosine similarity with another head, mean over {len(images)} images.'
    print(f'{note}\n\n{format_table(rows, COLUMNS)}\n')
    for name in similarities:
        means = [row['mean'] for row in rows if row['model'] == name]
        print(f'{name}: {sum(means) / len(means):.3f}, mean over {len(means)} blocks.')
    write_outputs(args, rows, COLUMNS, note, lambda: plot_similarity(similarities))
