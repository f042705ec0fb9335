"""Evaluate a checkpoint of an mmdet or mmpretrain config."""

import os
from copy import deepcopy

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from mmevit.checkpoint import forbid_code_in_checkpoints
from mmevit.engine import ConfigError, check_config
from mmevit.engine.checks import find_datasets, type_name
from mmevit.engine.launch import (
    build_runner,
    check_checkpoint,
    common_parser,
    load_config,
    one_sentence_errors,
)


def parse_args():
    """Parse the command line."""
    parser = common_parser(__doc__)
    parser.add_argument('config', help='config file, of mmdet or mmpretrain')
    parser.add_argument('checkpoint', help='checkpoint file')
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
    args = parser.parse_args()
    if args.out_item and not args.out:
        parser.error('--out-item needs --out.')
    suffixes = ('.pkl', '.pickle')
    if args.out_item == 'metrics':
        suffixes += ('.json', '.yaml', '.yml')
    if args.out and not args.out.endswith(suffixes):
        parser.error(f'--out {args.out} must end in {", ".join(suffixes)}.')
    return args


def main():
    """Check everything that can be checked first, then evaluate."""
    args = parse_args()
    forbid_code_in_checkpoints(trust=args.trust_checkpoint)
    splits = ('test',)
    needs = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')
    cfg = load_config(args, splits, needs)
    cfg.load_from = args.checkpoint
    check_checkpoint(args.checkpoint)
    check_config(cfg, splits)
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        enable_tta(cfg)

    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='WholeCheckpointHook')]
    # Without its file's name, the config is kept beside the one that training kept, not over it.
    runner = build_runner(Config(cfg.to_dict()))
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(make_dump(cfg, args.out))
    metrics = runner.test()
    if args.out_item == 'metrics' and runner.rank == 0:
        mmengine.dump(metrics, args.out)


def enable_drawing(cfg, args):
    """Have the visualization hook draw, with the same flags for mmdet and mmpretrain.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The parsed command line.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError(
            '--show and --show-dir need default_hooks.visualization in the config, such as '
            "dict(type='DetVisualizationHook') for mmdet."
        )
    is_detector = type_name(hook) == 'DetVisualizationHook'
    if args.tta and not is_detector:
        raise ConfigError(
            "mmpretrain's hook cannot draw several views of an image: leave out --tta or --show."
        )
    hook.update(interval=args.interval, show=args.show, wait_time=args.wait_time)
    # A relative folder would be taken below the work directory by mmdet, but not by mmpretrain.
    folder = os.path.abspath(args.show_dir) if args.show_dir else None
    if is_detector:
        hook.update(type='IntervalDetVisualizationHook', draw=True, test_out_dir=folder)
    else:
        hook.update(enable=True, out_dir=folder)


def enable_tta(cfg):
    """Wrap the model and the pipeline for test-time augmentation, by flips unless the config says.

    Args:
        cfg (Config): The config.
    """
    is_detector = uses_mmdet(cfg)
    datasets = list(find_datasets(cfg.test_dataloader.dataset))
    if 'tta_model' not in cfg:
        nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = (
            dict(type='DetTTAModel', tta_cfg=nms)
            if is_detector
            else dict(type='AverageClsScoreTTA')
        )
    if 'tta_pipeline' not in cfg:
        *transforms, pack = deepcopy(datasets[0].pipeline)
        if is_detector:
            keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
            pack.meta_keys = (*keys, 'flip', 'flip_direction')
        # Merged predictions are drawn and measured on the first view, so that is not flipped.
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        augmentation = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*transforms, augmentation]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline


def uses_mmdet(cfg):
    """Whether a config is one of mmdet, rather than of mmpretrain."""
    return cfg.get('default_scope') == 'mmdet'


def make_dump(cfg, path):
    """Make the metric that writes the predictions, masks run-length encoded.

    Args:
        cfg (Config): The config.
        path (str): File to write.

    Returns:
        DumpResults: The metric.
    """
    if not uses_mmdet(cfg):
        return DumpResults(path)
    from mmdet.evaluation import DumpDetResults

    return DumpDetResults(path)


if __name__ == '__main__':
    with one_sentence_errors():
        main()
