"""Evaluate a checkpoint, or an exported file, of an mmdet, mmpretrain or mmsegmentation config."""

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import DumpResults

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.checkpoint.loader import check_checkpoint
from mmevit.checks import check_config
from mmevit.checks.labels import refuse_empty_datasets
from mmevit.cli.arguments import common_parser, load_config
from mmevit.cli.errors import one_sentence_errors
from mmevit.datasets.loading import load_readable_images
from mmevit.deploy import TARGETS
from mmevit.deploy.evaluation import evaluate_exported
from mmevit.engine.runner import build_runner
from mmevit.utils.configs import as_list, find_datasets, type_name
from mmevit.utils.errors import ConfigError

# Those that draw every n-th image, as the one of mmpretrain does.
INTERVAL_HOOKS = dict(
    DetVisualizationHook='IntervalDetVisualizationHook',
    SegVisualizationHook='IntervalSegVisualizationHook',
)
# How each library merges the predictions of several views, unless its config says.
TTA_MODELS = dict(
    mmdet=dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    mmpretrain=dict(type='AverageClsScoreTTA'),
    mmseg=dict(type='SegTTAModel'),
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument('config', help='config file, of mmdet, mmpretrain or mmsegmentation')
    parser.add_argument('checkpoint', help='checkpoint file, or one that tools/export.py wrote')
    parser.add_argument('--out', metavar='FILE', help='write predictions (.pkl) or metrics here')
    parser.add_argument(
        '--out-item',
        choices=['pred', 'metrics'],
        help='what --out writes, predictions unless given',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save pictures of the predictions here')
    parser.add_argument('--interval', type=int, default=1, help='draw every so many images')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show shows a picture'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument('--amp', action='store_true', help='evaluate in mixed precision')
    parser.add_argument(
        '--deploy', action='store_true', help='fold the model for inference and evaluate that'
    )
    args = parser.parse_args(argv)
    if args.out_item and not args.out:
        parser.error('--out-item needs --out.')
    suffixes = ('.pkl', '.pickle')
    if args.out_item == 'metrics':
        suffixes += ('.json', '.yaml', '.yml')
    if args.out and not args.out.endswith(suffixes):
        parser.error(f'--out {args.out} must end in {", ".join(suffixes)}.')
    return args


@one_sentence_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Check everything that can be checked first, then evaluate."""
    args = parse_args(argv)
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    splits = ('test',)
    needs = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')
    cfg = load_config(args, splits, needs)
    is_exported = Path(args.checkpoint).suffix in TARGETS.values()
    # A config that a resumed run has kept would have the training resumed.
    cfg.resume, cfg.load_from = False, None if is_exported else args.checkpoint
    check_checkpoint(cfg.load_from)
    check_config(cfg, splits)
    if is_exported:
        if args.deploy or args.launcher != 'none':
            raise ConfigError(
                '--deploy and --launcher are for checkpoints: an exported file is folded already, '
                'and runs in one process.'
            )
        evaluate_exported(cfg, args.checkpoint, args.trust_checkpoint)
    if args.amp:
        if cfg.get('default_scope') == 'mmdet' and get_device() == 'cpu':
            raise ConfigError("--amp needs a GPU for detectors: on CPUs mmcv's nms takes float32.")
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        enable_tta(cfg)

    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='StrictLoadHook')]
    if args.deploy:
        cfg.custom_hooks.append(dict(type='FoldHook'))
    # Without its file's name, the config is kept beside the one that training kept, not over it.
    runner = build_runner(Config(cfg._to_lazy_dict()))
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(make_dump(cfg, args.out))
    with refuse_empty_datasets('test'):
        runner.test_loop  # noqa: B018
    metrics = runner.test()
    if args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)


def enable_drawing(cfg, args):
    """Have the visualization hook draw, with the same flags for all libraries.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The parsed command line.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ConfigError(
            '--show and --show-dir need default_hooks.visualization in the config, such as '
            "dict(type='DetVisualizationHook') for mmdet."
        )
    if cfg.get('visualizer') is None:
        raise ConfigError('--show and --show-dir need a visualizer, but the config has none.')
    # A relative folder would be taken below the work directory by mmdet, but not by mmpretrain.
    folder = os.path.abspath(args.show_dir) if args.show_dir else None
    hook.update(interval=args.interval, show=args.show, wait_time=args.wait_time)
    if type_name(hook) in INTERVAL_HOOKS:
        hook.update(type=INTERVAL_HOOKS[type_name(hook)], draw=True, test_out_dir=folder)
        return
    if args.tta:
        raise ConfigError(
            "mmpretrain's hook cannot draw several views of an image: leave out --tta or --show."
        )
    hook.update(enable=True, out_dir=folder)


def enable_tta(cfg):
    """Wrap the model and the pipeline for test-time augmentation, by flips unless the config says.

    Args:
        cfg (Config): The config.

    Raises:
        ConfigError: If the model finds masks of objects, which mmdet cannot merge.
    """
    library = cfg.get('default_scope')
    if library not in TTA_MODELS:
        raise ConfigError(
            f'--tta is for configs with default_scope {", ".join(TTA_MODELS)}, not {library!r}.'
        )
    if library == 'mmdet' and finds_masks(cfg):
        raise ConfigError(
            'mmdet has no test-time augmentation for masks of objects: leave out --tta.'
        )
    datasets = list(find_datasets(cfg.test_dataloader.dataset))
    if cfg.get('tta_model') is None:
        cfg.tta_model = TTA_MODELS[library]
    if cfg.get('tta_pipeline') is None:
        *transforms, pack = deepcopy(datasets[0].pipeline)
        if library == 'mmdet':
            # Unlike its test pipelines, its defaults tell whether a view is flipped.
            pack.pop('meta_keys', None)
        # Merged predictions are drawn and measured on the first view, so that is not flipped.
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        augmentation = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*transforms, augmentation]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
        load_readable_images(dataset, on_error='blank')


def finds_masks(cfg):
    """Whether a detector has a head for masks, or is measured by some."""
    heads = (cfg.model, cfg.model.get('roi_head') or {})
    return any(head.get('mask_head') for head in heads) or any(
        'segm' in (evaluator.get('metric') or ()) or 'Panoptic' in type_name(evaluator)
        for evaluator in as_list(cfg.test_evaluator)
    )


def make_dump(cfg, path):
    """Make the metric that writes the predictions.

    Args:
        cfg (Config): The config.
        path (str): File to write.

    Returns:
        DumpResults: The metric; masks of objects are run-length encoded.
    """
    if cfg.get('default_scope') != 'mmdet':
        return DumpWithoutLogits(path)
    from mmdet.evaluation import DumpDetResults

    return DumpDetResults(path)


class DumpWithoutLogits(DumpResults):
    """Without the scores of every class at every pixel, which would soon fill the memory."""

    def process(self, data_batch, predictions):
        """Keep the rest of the predictions of a batch."""
        kept = [
            {name: value for name, value in prediction.items() if name != 'seg_logits'}
            for prediction in predictions
        ]
        super().process(data_batch, kept)
