"""Evaluate a checkpoint or an exported file with a config of an OpenMMLab library."""

import os
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import DumpResults

from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.checks.labels import refuse_empty_datasets
from mmevit.cli.arguments import (
    add_run_arguments,
    argument,
    command,
    flag,
    load_config,
    positive_int,
)
from mmevit.datasets.loading import load_readable_images
from mmevit.deploy.evaluation import use_exported_model
from mmevit.deploy.exporting import TARGETS_BY_SUFFIX
from mmevit.engine.runner import build_runner
from mmevit.utils.configs import as_list, list_dataset_configs, type_name
from mmevit.utils.errors import ConfigError
from mmevit.utils.files import atomic_write

# Hooks that do not draw every n-th image as mmpretrain's does. Those named Interval... do.
DRAWING_HOOKS = ('DetVisualizationHook', 'SegVisualizationHook')
# Default models for test-time augmentation.
TTA_MODELS = dict(
    mmdet=dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    mmpretrain=dict(type='AverageClsScoreTTA'),
    mmseg=dict(type='SegTTAModel'),
)


@command(
    add_run_arguments,
    argument('config', 'config file'),
    argument('checkpoint', 'checkpoint or exported file'),
    argument('--out', 'file for predictions (.pkl) or metrics'),
    argument('--out-item', 'content of --out (default: pred)', choices=['pred', 'metrics']),
    flag('--show', 'show predictions in a window'),
    argument('--show-dir', 'directory for images with predictions'),
    argument('--interval', 'draw every n-th image (default: 1)', type=positive_int, default=1),
    argument(
        '--wait-time', 'display time of --show in seconds (default: 2)', type=float, default=2
    ),
    flag('--tta', 'test-time augmentation'),
    flag('--amp', 'evaluate in mixed precision'),
    flag('--deploy', 'fold batch norm before the evaluation'),
)
def main(args: Namespace) -> None:
    """Validate config, devices and data, then evaluate."""
    check_out(args)
    cfg = load_config(args, ['test'], ['model', 'test_dataloader', 'test_evaluator', 'test_cfg'])
    is_exported = Path(args.checkpoint).suffix in TARGETS_BY_SUFFIX
    # The config in a work directory may have `resume=True`.
    cfg.resume, cfg.load_from = False, None if is_exported else args.checkpoint
    check_checkpoint(cfg.load_from)
    check_config(cfg, ['test'])
    if is_exported:
        if args.amp or args.deploy or args.launcher != 'none':
            raise ConfigError(
                '--amp, --deploy and --launcher are not supported for exported files, which have '
                'their own type, are folded and run in one process. Remove the option.'
            )
        use_exported_model(cfg, args.checkpoint, args.trust_checkpoint)
    if args.amp:
        if cfg.get('default_scope') == 'mmdet' and get_device() == 'cpu':
            raise ConfigError(
                "--amp requires a GPU for detectors: on CPUs, mmcv's nms only supports float32. "
                'Remove --amp.'
            )
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        enable_tta(cfg)
    hooks = ['StrictLoadHook', 'FoldHook'] if args.deploy else ['StrictLoadHook']
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *(dict(type=name) for name in hooks)]
    # Without its file name, so that the config of the training in the work directory is not
    # overwritten. Private: the public to_dict() converts classes to strings.
    runner = build_runner(Config(cfg._to_lazy_dict()))
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(make_dump(cfg, args.out))
    with refuse_empty_datasets('test'):
        runner.test_loop  # noqa: B018
    metrics = runner.test()
    if args.out_item == 'metrics' and runner.rank == 0:
        with atomic_write(args.out) as path:
            mmengine.dump(metrics, path)


def check_out(args: Namespace) -> None:
    """Raise ArgumentError if ``--out`` is missing or has an unsupported suffix."""
    if args.out_item and not args.out:
        raise ArgumentError(None, '--out-item requires --out.')
    suffixes = ('.pkl', '.pickle')
    if args.out_item == 'metrics':
        suffixes += ('.json', '.yaml', '.yml')
    if args.out and not args.out.endswith(suffixes):
        raise ArgumentError(None, f'--out {args.out} must end in {", ".join(suffixes)}.')


def enable_drawing(cfg: Config, args: Namespace) -> None:
    """Enable the visualization hook, with the same options for all libraries."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ConfigError(
            '--show and --show-dir require default_hooks.visualization in the config. Set it, for '
            "mmdet to dict(type='DetVisualizationHook')."
        )
    if cfg.get('visualizer') is None:
        raise ConfigError(
            '--show and --show-dir require a visualizer, but visualizer is None. Set it in the '
            'config.'
        )
    # mmdet resolves relative paths in the work directory, mmpretrain in the current one.
    folder = os.path.abspath(args.show_dir) if args.show_dir else None
    hook.update(interval=args.interval, show=args.show, wait_time=args.wait_time)
    if type_name(hook) in DRAWING_HOOKS:
        hook.update(type=f'Interval{type_name(hook)}', draw=True, test_out_dir=folder)
        return
    if args.tta:
        raise ConfigError(
            "mmpretrain's visualization hook does not support --tta. Remove --tta, or --show and "
            '--show-dir.'
        )
    hook.update(enable=True, out_dir=folder)


def enable_tta(cfg: Config) -> None:
    """Enable test-time augmentation as set in the config (default: flips)."""
    library = cfg.get('default_scope')
    if library not in TTA_MODELS:
        raise ConfigError(
            f'--tta does not support default_scope={library!r}, only {", ".join(TTA_MODELS)}. '
            'Remove it.'
        )
    if library == 'mmdet' and has_masks(cfg):
        raise ConfigError('mmdet does not support test-time augmentation for masks. Remove --tta.')
    datasets = list_dataset_configs(cfg, 'test')
    if cfg.get('tta_model') is None:
        cfg.tta_model = TTA_MODELS[library]
    if cfg.get('tta_pipeline') is None:
        *transforms, pack = deepcopy(datasets[0].pipeline)
        if library == 'mmdet':
            # Unlike its test pipelines, the default meta_keys include the flip.
            pack.pop('meta_keys', None)
        # Merged predictions are drawn and evaluated on the first view, which is not flipped.
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
        load_readable_images(dataset, on_error='blank')


def has_masks(cfg: Config) -> bool:
    """Whether a detector has a mask head, or masks are evaluated."""
    heads = (cfg.model, cfg.model.get('roi_head') or {})
    return any(head.get('mask_head') for head in heads) or any(
        'segm' in (evaluator.get('metric') or ()) or 'Panoptic' in type_name(evaluator)
        for evaluator in as_list(cfg.test_evaluator)
    )


def make_dump(cfg: Config, path: str) -> DumpResults:
    """Create the metric that writes the predictions; mmdet's encodes masks."""
    if cfg.get('default_scope') != 'mmdet':
        return DumpWithoutLogits(path)
    from mmdet.evaluation import DumpDetResults

    return DumpDetResults(path)


class DumpWithoutLogits(DumpResults):
    """:class:`mmengine.evaluator.DumpResults` without segmentation logits, to save memory."""

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        """Store the predictions of a batch."""
        kept = [{key: one[key] for key in one if key != 'seg_logits'} for one in predictions]
        super().process(data_batch, kept)
